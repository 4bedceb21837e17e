// Shows on our nodes the lines of text that they end with: the page itself draws none.
import { app } from "../../scripts/app.js";
import { ComfyWidgets } from "../../scripts/widgets.js";

const NAME = "dreambooth_result";

function field(node) {
  const found = node.widgets?.find((each) => each.name === NAME);
  if (found) return found;
  const { widget } = ComfyWidgets.STRING(node, NAME, ["STRING", { multiline: true }], app);
  const element = widget.inputEl ?? widget.element;
  if (element) element.readOnly = true;
  // It is no setting: neither the saved graph nor the prompt has it.
  widget.serialize = false;
  widget.options.serialize = false;
  widget.serializeValue = async () => undefined;
  return widget;
}

function show(node, lines) {
  const width = node.size[0];
  field(node).value = lines.join("\n");
  const needed = node.computeSize();
  node.setSize([Math.max(width, needed[0]), Math.max(node.size[1], needed[1])]);
  node.setDirtyCanvas?.(true, true);
}

app.registerExtension({
  name: "DreamBooth.results",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("DreamBooth")) return;
    const before = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (message) {
      before?.apply(this, arguments);
      const lines = message?.text;
      if (lines?.length) show(this, [].concat(lines));
    };
  },
});
