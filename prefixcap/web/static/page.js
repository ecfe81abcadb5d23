// The page of `prefixcap serve`: sends pictures to the HTTP API, as anyone may, and shows what it answers.
"use strict";

window.prefixcap = (() => {
  const AT_ONCE = 4; // requests
  const MOST_TRIES = 30; // while the server is busy
  const LOW = "Low: unlike the photographs it learned from"; // of a similarity

  // What is sent with a picture; the options of a single decoder are called `decoder.option`.
  let settings = { decode: "beam", count: 3, by_similarity: true };
  let takes = { beam: ["count"] };

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== undefined));
    return made;
  }

  // ---- the API ----------------------------------------------------------------------------------------

  let running = 0;
  const waiting = [];

  async function turn() {
    if (running >= AT_ONCE) await new Promise((go) => waiting.push(go));
    else running += 1;
  }

  function turnOver() {
    if (waiting.length) waiting.shift()();
    else running -= 1;
  }

  async function ask(path, parts, whileBusy = () => {}) {
    const form = new FormData();
    for (const [name, value] of parts) form.append(name, value);
    await turn();
    try {
      for (let tries = 1; ; tries += 1) {
        const response = await fetch(path, { method: "POST", body: form }).catch(() => {
          throw new Error("the server cannot be reached: is it still running?");
        });
        const answer = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
        if (response.ok) return answer;
        if (response.status !== 503 || tries === MOST_TRIES) throw new Error(answer.error);
        whileBusy();
        await new Promise((go) => setTimeout(go, 1000 * (Number(response.headers.get("Retry-After")) || 1)));
      }
    } finally {
      turnOver();
    }
  }

  function chosen() {
    const { decode, prompt } = settings;
    const by_similarity = settings.by_similarity && !("noTexts" in document.querySelector("#head").dataset);
    const fields = { decode, prompt, by_similarity };
    for (const name of takes[decode]) fields[name] = settings[`${decode}.${name}`] ?? settings[name];
    if (fields.beams < fields.count) fields.beams = fields.count; // there are no more captions than beams
    return Object.entries(fields).filter(([, value]) => value !== undefined);
  }

  // ---- results ----------------------------------------------------------------------------------------

  let results;
  const cards = [];

  class Card {
    // `picture` shows what is captioned; `request` gives path and parts, read anew each time. `without` are items that
    // the visitor has taken out of the captioner's own prompt.
    constructor(label, picture, request, file) {
      Object.assign(this, { label, request, file, without: [] });
      this.text = element("div", { class: "text" });
      this.box = element("article", { class: "card" }, picture, this.text);
      cards.push(this);
      results.querySelector("#results").append(this.box);
      count();
    }

    async write() {
      const number = (this.number = (this.number ?? 0) + 1); // an answer to older settings comes too late
      const say = (message) => this.text.replaceChildren(element("p", { class: "working", role: "status" }, message));
      say("Writing …");
      this.box.classList.remove("failed");
      try {
        const [path, parts] = this.request();
        const left = this.without.map((item) => ["without", item]);
        const answer = await ask(path, [...parts, ...left], () => say("The server is busy, this picture waits for its turn …"));
        if (number === this.number) this.show(answer.captions ?? answer.images[0].captions, answer.images?.[0].prompt);
      } catch (error) {
        if (number !== this.number) return;
        this.box.classList.add("failed");
        this.text.replaceChildren(
          element("h3", {}, "No caption for this one"),
          element("p", { dir: "auto" }, error.message),
          element("button", { class: "quiet", type: "button", onclick: () => this.write() }, "Try again"),
        );
      }
    }

    show([best, ...others], prompt) {
      const alternatives = others.map((caption) => element("li", {}, element("span", { dir: "auto" }, caption.text), score(caption)));
      this.text.replaceChildren(
        element("h3", { dir: "auto" }, best.text || "(an empty caption)"),
        element("p", { class: "about" }, element("span", { class: "name" }, this.label), score(best)),
        this.file && best.similarity < low() ? element("p", { class: "low" }, LOW) : "",
        alternatives.length ? element("ol", {}, ...alternatives) : "",
        prompt ? this.items(prompt.items) : "",
        this.file ? this.prefix() : "",
      );
      this.focus?.();
      this.focus = undefined;
    }

    // What the captioner's own prompt was made of. An item that is clicked is left out, and the caption written anew.
    items(items) {
      const rewrite = (without, place) => {
        this.without = without;
        this.focus = () => { // the button that was clicked has gone
          const buttons = [...this.text.querySelectorAll(".items button")];
          if (document.activeElement === document.body) buttons[Math.min(place, buttons.length - 1)]?.focus();
        };
        this.write();
      };
      const buttons = items.map((item, place) => {
        const name = `${item.text}: write without it`;
        const onclick = () => rewrite([...this.without, item.text], place);
        const cross = element("span", { class: "cross" }, "×");
        const text = element("span", { class: "item", dir: "auto" }, item.text);
        const title = "how well it fits the picture; click to write without it";
        return element("li", {}, element("button", { type: "button", "aria-label": name, title, onclick }, text, element("span", {}, item.score.toFixed(2)), cross));
      });
      if (this.without.length) {
        const all = element("button", { type: "button", class: "all", onclick: () => rewrite([], 0) }, "Put all back");
        buttons.push(element("li", {}, all));
      }
      const heading = items.length ? "Read before writing; take out what is wrong:" : "Nothing was read before writing.";
      return element("div", { class: "items" }, element("p", {}, heading), element("ul", {}, ...buttons));
    }

    prefix() {
      const inside = element("div", { class: "prefix" });
      const details = element("details", {}, element("summary", {}, "What the prefix says"), inside);
      details.addEventListener("toggle", async () => {
        if (!details.open || inside.hasChildNodes()) return;
        inside.append(element("p", { class: "working" }, "Reading …"));
        try {
          const { images } = await ask("api/interpret", [["images", this.file], ["count", 3]]);
          const rows = images[0].vectors.map((tokens, at) => {
            const row = element("tr", {}, element("th", { scope: "row" }, String(at + 1)));
            row.append(...tokens.map((token) => element("td", {}, element("code", {}, token.text.trim() || "␣"), score(token))));
            return row;
          });
          const note = "The tokens whose embeddings are nearest to each prefix vector, with their cosines.";
          inside.replaceChildren(element("p", { class: "hint" }, note), element("table", {}, element("tbody", {}, ...rows)));
        } catch (error) {
          inside.replaceChildren(element("p", {}, error.message));
        }
      });
      return details;
    }
  }

  function low() {
    return Number(document.querySelector("#head").dataset.lowSimilarity ?? -Infinity);
  }

  function score({ similarity }) {
    if (similarity === null) return ""; // the encoder reads no texts
    const share = Math.max(0, Math.min(1, similarity));
    const title = "cosine with CLIP's embedding, -1 to 1";
    const bar = element("span", { class: "bar" }, element("span", { style: `width: ${100 * share}%` }));
    return element("span", { class: "score", title }, bar, similarity.toFixed(2));
  }

  function count() {
    results.querySelector("#empty").hidden = cards.length > 0;
    results.querySelector("#results-head").hidden = !cards.length;
    results.querySelector("#count").textContent = cards.length === 1 ? "1 result" : `${cards.length} results`;
  }

  function show(file) {
    const image = element("img", { alt: file.name, src: URL.createObjectURL(file) });
    image.addEventListener("error", () => image.replaceWith(element("div", { class: "no-picture" }, "no picture")));
    return image;
  }

  // Where captions are retrieved from, if there is a choice; what is known of a picture takes their place.
  function datastore() {
    const select = document.querySelector("#datastore select");
    return select ? [["datastore", select.value]] : [];
  }

  function addPictures(files) {
    const known = document.querySelector("#known input").value.trim();
    const added = [...files].map((file) => {
      const request = () => ["api/caption", [["images", file], ...(known ? [["prompts", known]] : datastore()), ...chosen()]];
      return new Card(file.name, element("div", { class: "picture" }, show(file)), request, file);
    });
    added.forEach((card) => card.write());
    if (window.innerWidth < 700) added[0]?.box.scrollIntoView({ behavior: "smooth", block: "nearest" });
  }

  // ---- the parts of the page, each called when Gradio has made it ---------------------------------------

  async function example(number) {
    const blob = await (await fetch(`examples/${number}.jpg`)).blob();
    return new File([blob], `example ${number + 1}`, { type: "image/jpeg" });
  }

  function takesFiles(place, input, take) {
    input.addEventListener("change", () => {
      take([...input.files]);
      input.value = "";
    });
    place.addEventListener("keydown", (event) => {
      if (event.target === place && ["Enter", " "].includes(event.key)) input.click();
    });
    place.addEventListener("dragover", (event) => {
      event.preventDefault();
      place.classList.add("over");
    });
    place.addEventListener("dragleave", () => place.classList.remove("over"));
    place.addEventListener("drop", (event) => {
      event.preventDefault();
      place.classList.remove("over");
      take([...event.dataTransfer.files]);
    });
  }

  async function takePicture() {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } }).catch(() => {});
    const video = element("video", { autoplay: true, playsinline: true });
    video.muted = true;
    const dialog = element(
      "dialog",
      { class: "camera", onclose: () => (stream?.getTracks().forEach((track) => track.stop()), dialog.remove()) },
      stream ? video : element("p", {}, "There is no camera, or this page may not use it."),
      element(
        "div",
        { class: "actions" },
        stream ? element("button", { type: "button", onclick: () => shoot() }, "Take the picture") : "",
        element("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, stream ? "Cancel" : "Close"),
      ),
    );
    function shoot() {
      const canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
      canvas.getContext("2d").drawImage(video, 0, 0);
      canvas.toBlob((blob) => addPictures([new File([blob], "camera", { type: "image/jpeg" })]), "image/jpeg", 0.92);
      dialog.close();
    }
    if (stream) video.srcObject = stream;
    document.body.append(dialog);
    dialog.showModal();
  }

  return {
    settings(names, values, taken) {
      takes = taken;
      settings = Object.fromEntries(names.map((name, at) => [name, values[at]]));
      document.body.dataset.decoder = settings.decode;
    },

    captions(part) {
      takesFiles(part.querySelector("#drop"), part.querySelector("#files"), addPictures);
      part.querySelectorAll(".example").forEach((button, number) => {
        button.addEventListener("click", async () => addPictures([await example(number)]));
      });
      const camera = part.querySelector("#camera");
      camera.hidden = !navigator.mediaDevices?.getUserMedia; // which browsers allow on localhost and https only
      camera.addEventListener("click", takePicture);
      document.addEventListener("paste", (event) => addPictures(event.clipboardData.files));
    },

    results(part) {
      results = part;
      part.querySelector("#again").addEventListener("click", () => cards.forEach((card) => card.write()));
      part.querySelector("#clear").addEventListener("click", () => {
        cards.splice(0).forEach((card) => card.box.remove());
        count();
      });
      count();
    },

    arithmetic(part) {
      const terms = [0, 1, 2].map((at) => {
        const term = { file: undefined };
        term.sign = element("select", { "aria-label": "sign" }, element("option", { value: 1 }, "+"), element("option", { value: -1 }, "−"));
        term.weight = element("input", { type: "number", min: 0, max: 10, step: 0.1, value: 1, "aria-label": "weight" });
        term.words = element("input", { type: "text", maxlength: 200, placeholder: "or words", "aria-label": "words" });
        const input = element("input", { type: "file", accept: "image/*" });
        const place = element("label", { class: "small-drop", tabindex: 0, title: "a picture" }, input, "picture");
        term.put = (file) => {
          term.file = file;
          place.replaceChildren(input, file ? show(file) : "picture");
          term.words.hidden = Boolean(file);
          remove.hidden = !file;
        };
        const remove = element("button", { type: "button", class: "quiet", hidden: true, onclick: () => term.put() }, "Remove");
        remove.setAttribute("aria-label", "remove the picture");
        takesFiles(place, input, ([file]) => file && term.put(file));
        part.querySelector("#terms").append(element("div", { class: "term" }, term.sign, term.weight, place, remove, term.words));
        if (at === 1) term.sign.value = -1;
        return term;
      });
      const workOut = () => {
        const parts = [];
        const shown = [];
        for (const { file, words, sign: chosenSign, weight } of terms) {
          const text = words.value.trim();
          if (!file && !text) continue;
          const factor = chosenSign.value * weight.value;
          parts.push(...(file ? [["images", file], ["image_weights", factor]] : [["texts", text], ["text_weights", factor]]));
          const sign = factor < 0 ? "−" : shown.length ? "+" : "";
          const number = Math.abs(factor) === 1 ? "" : `${Math.abs(factor)} ×`;
          const operand = file ? show(file) : element("q", { dir: "auto" }, text);
          shown.push(element("span", {}, element("b", {}, sign, " ", number), operand));
        }
        new Card("sum", element("div", { class: "picture sum" }, ...shown), () => ["api/arithmetic", [...parts, ...chosen()]]).write();
      };
      part.querySelector("#work-out").addEventListener("click", workOut);
      part.querySelector("#example")?.addEventListener("click", async () => {
        for (const [at, number] of [[0, 0], [1, 4], [2, 3]]) terms[at].put(await example(number));
        workOut();
      });
    },
  };
})();
