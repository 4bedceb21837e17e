// What the WebUI's own scripts give to those of extensions.

const loaded = [], updated = [], changed = [];
const gradioApp = () => document;
const onUiLoaded = (callback) => loaded.push(callback);
const onUiUpdate = (callback) => updated.push(callback);
const onUiTabChange = (callback) => changed.push(callback);
const switch_to_txt2img = () => document.querySelector("#tabs button").click();

document.addEventListener("DOMContentLoaded", () => {
    let ready = false;
    new MutationObserver((mutations) => {
        if (!ready && document.querySelector("#txt2img_prompt")) {
            ready = true;
            loaded.forEach((callback) => callback());
        }
        updated.forEach((callback) => callback(mutations));
    }).observe(document, {childList: true, subtree: true});
});
