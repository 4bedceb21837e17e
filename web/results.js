// Shows on our nodes the lines of text that they end with, and how a training goes: the page itself
// draws neither.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { ComfyWidgets } from "../../scripts/widgets.js";

const NAME = "dreambooth_result";
const CURVES = "dreambooth_curves";
const TALL = 110; // of the drawing, in the page's units
const COLOURS = { loss: "#60a5fa", held_out_loss: "#fbbf24", score: "#4ade80" };
const WORDS = { loss: "loss", held_out_loss: "held-out loss", score: "score" };

function field(node) {
  const found = node.widgets?.find((each) => each.name === NAME);
  if (found) return found;
  const { widget } = ComfyWidgets.STRING(node, NAME, ["STRING", { multiline: true }], app);
  const element = widget.inputEl ?? widget.element;
  if (element) element.readOnly = true;
  return above(node, unsaved(widget));
}

// It is no setting: neither the saved graph nor the prompt has it.
function unsaved(widget) {
  widget.serialize = false;
  widget.options = { ...widget.options, serialize: false };
  widget.serializeValue = async () => undefined;
  return widget;
}

function show(node, lines) {
  field(node).value = lines.join("\n");
  fit(node);
}

// The image that the page shows on a node takes all that is below it: whatever else is shown stands
// above. The page's own widgets are those whose names begin so.
function above(node, widget) {
  const widgets = node.widgets;
  const image = widgets.findIndex((each) => each.name.startsWith("$$"));
  const now = widgets.indexOf(widget);
  if (image >= 0 && image < now) widgets.splice(image, 0, ...widgets.splice(now, 1));
  return widget;
}

function fit(node) {
  const needed = node.computeSize();
  node.setSize([Math.max(node.size[0], needed[0]), Math.max(node.size[1], needed[1])]);
  node.setDirtyCanvas?.(true, true);
}

// ---- curves -----------------------------------------------------------------------------------

function curves(node) {
  const found = node.widgets?.find((each) => each.name === CURVES);
  if (found) return found;
  const widget = {
    name: CURVES,
    type: CURVES,
    value: null,
    options: {},
    computeSize: (width) => [width, TALL],
    draw(context, owner, width, top) {
      if (this.value) paint(context, this.value, 12, top + 6, width - 24, TALL - 12);
    },
  };
  const added = node.addCustomWidget(unsaved(widget));
  fit(node);
  return above(node, added);
}

// Loss and held-out loss have one scale, the score its own; the best step is a dashed line.
function paint(context, told, left, top, width, height) {
  const losses = [told.loss, told.measured.held_out_loss];
  const groups = [
    { lines: { loss: losses[0], held_out_loss: losses[1] } },
    { lines: { score: told.measured.score } },
  ];
  const across = (step) => left + (width * step) / told.steps;
  context.save();
  context.fillStyle = "rgba(127, 127, 127, 0.12)";
  context.fillRect(left, top, width, height);
  if (told.best !== null) {
    context.strokeStyle = "rgba(160, 160, 160, 0.9)";
    context.setLineDash([4, 3]);
    path(context, [[across(told.best), top], [across(told.best), top + height]]);
    context.setLineDash([]);
  }
  let legend = left + 6;
  context.font = "10px sans-serif";
  for (const { lines } of groups) {
    const there = Object.entries(lines).filter(([, points]) => points?.length);
    const values = there.flatMap(([, points]) => points.map(([, value]) => value));
    const low = Math.min(0, ...values);
    const high = Math.max(...values, low + 1e-6);
    const down = (value) => top + height - 4 - ((height - 22) * (value - low)) / (high - low);
    for (const [name, points] of there) {
      const last = points[points.length - 1];
      context.strokeStyle = context.fillStyle = COLOURS[name];
      context.lineWidth = 1.5;
      path(context, points.map(([step, value]) => [across(step), down(value)]));
      context.beginPath();
      context.arc(across(last[0]), down(last[1]), 2.5, 0, 2 * Math.PI);
      context.fill();
      const words = `${WORDS[name]} ${last[1].toPrecision(3)}`;
      context.fillText(words, legend, top + 12);
      legend += context.measureText(words).width + 12;
    }
  }
  context.restore();
}

function path(context, points) {
  context.beginPath();
  points.forEach(([x, y], n) => (n ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.stroke();
}

app.registerExtension({
  name: "DreamBooth.results",
  setup() {
    api.addEventListener("dreambooth.curves", ({ detail }) => {
      const node = app.graph.getNodeById?.(Number(detail.node));
      if (!node) return;
      curves(node).value = detail;
      node.setDirtyCanvas?.(true, true);
    });
  },
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
