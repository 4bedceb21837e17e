// Live parts of the WebUI's DreamBooth tab.
//
// The page asks through gradio itself, by pressing a hidden button: whatever login the host asks
// for holds for it too, and a page that is opened again is attached again.

const dreambooth = (() => {
    const FAST = 1000; // milliseconds between looks while something is going on
    const SLOW = 4000;
    const PATIENCE = 15000; // without an answer for so long, the host is asked whether it is there
    const GONE = 60000; // between questions to a host that did not answer: one that comes while it
    // starts, before it has added its own routes, makes A1111 end
    const LISTED = 4000; // a finished run is where the host lists it

    const root = () => gradioApp().querySelector("#dreambooth_tab");
    const find = (selector) => gradioApp().querySelector("#dreambooth_tab " + selector);
    const box = (id) => find(`#${id} textarea, #dreambooth_tab #${id} input`);

    let opened = null; // what was filled; gradio may draw the page again
    let asked = 0;
    let answered = 0;
    let beat = "";
    let checking = false;
    let wasLive = false;

    let known = null;

    // The word that the tab's functions ask for. The host tells it to pages that it knows for its
    // own, and adds that route a moment after it shows them.
    async function word() {
        for (let left = 20; known === null && left > 0; left -= 1) {
            const answer = await fetch("dreambooth/page", {cache: "no-store"}).catch(() => null);
            if (answer?.ok) known = (await answer.json()).word;
            else if (answer && answer.status !== 404) break;
            else await new Promise((resolve) => setTimeout(resolve, 500));
        }
        return known ?? "";
    }

    function press(id) {
        const button = find("#" + id);
        if (button) button.click();
    }

    function write(id, words) {
        const target = box(id);
        if (!target) return;
        target.value = words;
        target.dispatchEvent(new Event("input", {bubbles: true}));
    }

    // ---- looking ----------------------------------------------------------------------------

    function isLive() {
        return find('[data-live="1"]') !== null;
    }

    function look() {
        const here = root();
        if (!here || document.hidden || here.offsetParent === null || checking) return;
        // Only a run makes cards: the host answers with an error while it has no model.
        const training = find('#dreambooth_live_area [data-live="1"]') !== null;
        if (wasLive && !training) setTimeout(refreshCards, LISTED);
        wasLive = training;
        const now = Date.now();
        const main = find("#dreambooth_main"); // not to be seen before the engine is set up
        if (main && main.offsetParent !== null && opened !== main) {
            opened = main;
            restore();
        }
        const heard = box("dreambooth_beat")?.value ?? "";
        if (heard !== beat) {
            beat = heard;
            answered = now;
        }
        const waiting = asked > answered;
        if (waiting && now - asked > PATIENCE) {
            checkHost();
        } else if (!waiting && now - asked >= (isLive() ? FAST : SLOW)) {
            asked = now;
            press("dreambooth_tick");
        }
    }

    // Pressing buttons of a host that is gone would only pile up its complaints.
    async function checkHost() {
        checking = true;
        try {
            await fetch(window.location.href, {method: "HEAD", cache: "no-store"});
            asked = answered = 0;
        } catch {
            asked = Date.now() + GONE - PATIENCE;
        } finally {
            checking = false;
        }
    }

    // ---- loading the page again ---------------------------------------------------------------

    const KEPT = "dreambooth.form";
    const CALM = 800; // milliseconds without a change, after which what is in the form is kept
    let restored = false;
    let keeping = null;
    let kept = "";

    // What was in the form comes back, and with it whatever follows from opening the page.
    function restore() {
        const before = restored ? "" : sessionStorage.getItem(KEPT) ?? "";
        restored = true;
        write("dreambooth_kept", before);
        setTimeout(() => press("dreambooth_open"), 100);
    }

    function changed(event) {
        const target = event.target;
        if (!(target instanceof Element) || !target.closest("#dreambooth_left, #dreambooth_run_name")) return;
        clearTimeout(keeping);
        keeping = setTimeout(() => press("dreambooth_keep"), CALM);
    }

    function keep() {
        const now = box("dreambooth_kept")?.value ?? "";
        if (!now || now === kept) return;
        kept = now;
        sessionStorage.setItem(KEPT, now);
    }

    // ---- wrong values, at their fields --------------------------------------------------------

    let marked = "";

    function slug(key) {
        return "dreambooth_field_" + key.replace(/\W+/g, "_").replace(/^_+|_+$/g, "");
    }

    function mark() {
        const here = root();
        if (!here) return;
        const problems = [...here.querySelectorAll("[data-field]")];
        const now = problems.map((each) => each.dataset.field + each.textContent).join("\n");
        if (now === marked) return;
        marked = now;
        here.querySelectorAll(".db-wrong").forEach((field) => {
            field.classList.remove("db-wrong");
            delete field.dataset.dbWrong;
        });
        for (const problem of problems) {
            const field = gradioApp().querySelector("#" + slug(problem.dataset.field));
            if (!field) continue;
            field.classList.add("db-wrong");
            field.dataset.dbWrong = problem.textContent;
            problem.classList.add("db-leads");
        }
    }

    function show(key) {
        const field = gradioApp().querySelector("#" + slug(key));
        if (!field) return;
        for (let above = field; above && above !== root(); above = above.parentElement) {
            above.querySelector(":scope > .label-wrap:not(.open)")?.click();
        }
        setTimeout(() => field.scrollIntoView({block: "center", behavior: "smooth"}), 150);
    }

    // ---- clicks -------------------------------------------------------------------------------

    function enlarge(picture) {
        const above = document.createElement("div");
        above.id = "dreambooth_enlarged";
        above.append(picture.cloneNode());
        above.addEventListener("click", () => above.remove());
        document.body.append(above);
    }

    function clicked(event) {
        const target = event.target;
        if (!(target instanceof Element) || !root()?.contains(target)) return;
        const chooser = target.closest("[data-choose]");
        const canceller = target.closest("[data-cancel]");
        const marked = target.closest("[data-mark]");
        const problem = target.closest("[data-field]");
        if (chooser) write("dreambooth_chosen_run", chooser.dataset.choose);
        else if (marked) write("dreambooth_marked", marked.dataset.mark);
        else if (canceller) write("dreambooth_cancel", canceller.dataset.cancel);
        else if (problem) show(problem.dataset.field);
        else if (target.matches("[data-crop] img")) crop(target.closest("[data-crop]").dataset);
        else if (target.matches("figure img")) enlarge(target);
    }

    // ---- crops --------------------------------------------------------------------------------

    function crop(figure) {
        write(`dreambooth_crop_sides_${figure.crop}`, figure.sides);
        // gradio hears of no change where the same image is chosen again.
        write(`dreambooth_crop_of_${figure.crop}`, "");
        setTimeout(() => write(`dreambooth_crop_of_${figure.crop}`, figure.picture), 50);
    }

    // Draws from where the pointer went down to where it is, in shares of the image.
    function draw(event) {
        const paper = event.target instanceof Element ? event.target.closest("[data-cropper]") : null;
        if (!paper || !root()?.contains(paper)) return;
        event.preventDefault();
        const frame = paper.querySelector(".db-crop-frame");
        const edge = paper.getBoundingClientRect();
        const within = (share) => Math.min(Math.max(share, 0), 1);
        const at = (moved) => [
            within((moved.clientX - edge.left) / edge.width),
            within((moved.clientY - edge.top) / edge.height),
        ];
        const start = at(event);
        let sides = null;
        const move = (moved) => {
            const now = at(moved);
            const [left, right] = [start[0], now[0]].sort((a, b) => a - b);
            const [top, bottom] = [start[1], now[1]].sort((a, b) => a - b);
            sides = [left, top, right, bottom];
            const percent = (share) => `${100 * share}%`;
            Object.assign(frame.style, {
                left: percent(left),
                top: percent(top),
                width: percent(right - left),
                height: percent(bottom - top),
            });
        };
        const end = () => {
            document.removeEventListener("pointermove", move);
            if (sides) write(`dreambooth_crop_sides_${paper.dataset.cropper}`, sides.map((s) => s.toFixed(4)).join());
        };
        document.addEventListener("pointermove", move);
        document.addEventListener("pointerup", end, {once: true});
    }

    function begin() {
        document.addEventListener("click", clicked);
        document.addEventListener("pointerdown", draw);
        document.addEventListener("keydown", (event) => {
            if (event.key === "Escape") document.getElementById("dreambooth_enlarged")?.remove();
        });
        for (const kind of ["input", "change", "click", "focusout"]) {
            document.addEventListener(kind, changed);
        }
        setInterval(() => {
            look();
            keep();
        }, 250);
        onUiUpdate(() => requestAnimationFrame(mark));
    }

    // The host draws the cards of its Lora tab, and those beside it, when it is asked to.
    function refreshCards() {
        document.getElementById("txt2img_lora_extra_refresh_internal")?.click();
    }

    // ---- for the tab's own buttons ----------------------------------------------------------------

    function toPrompt(words) {
        const prompt = gradioApp().querySelector("#txt2img_prompt textarea");
        if (!words || !prompt) return;
        if (!prompt.value.includes(words)) {
            prompt.value = [prompt.value.trim(), words].filter(Boolean).join(", ");
            prompt.dispatchEvent(new Event("input", {bubbles: true}));
        }
        refreshCards();
        switch_to_txt2img();
        prompt.scrollIntoView({block: "center"});
    }

    function page(number) {
        gradioApp().querySelectorAll("#dreambooth_pages > .tab-nav > button")[number]?.click();
    }

    return {begin, toPrompt, page, show, word};
})();

onUiLoaded(dreambooth.begin);
