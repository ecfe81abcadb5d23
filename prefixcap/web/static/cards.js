// A picture, or a sum, with its captions: those of each captioner in a column of their own.

import { ask } from "./api.js";
import { copyButton, element, score } from "./dom.js";
import { captioners } from "./settings.js";

const LOW = "Low: unlike the photographs it learned from"; // of a similarity

export class Card {
  // `picture` shows what is captioned; `request` gives path and parts for a captioner, read anew each time; a sum has
  // no file.
  constructor(batch, label, picture, request, file, by) {
    Object.assign(this, { batch, label, request, file });
    this.columns = by.map((captioner) => new Column(this, captioner));
    const several = captioners().length > 1;
    const name = several ? element("p", { class: "name" }, label) : undefined;
    const columns = element("div", { class: "columns" }, ...this.columns.map((column) => column.text));
    this.box = element("article", { class: several ? "card several" : "card", "aria-label": label }, picture, name, columns);
  }

  write() {
    this.columns.forEach((column) => column.write());
  }

  // Whether all captioners have written, or failed.
  get settled() {
    return this.columns.every(({ state }) => state === "written" || state === "failed");
  }

  get captioned() {
    return this.columns.every(({ state }) => state === "written");
  }

  update() {
    this.box.classList.toggle("failed", this.columns.some(({ state }) => state === "failed"));
    this.batch.update();
  }
}

class Column {
  constructor(card, captioner) {
    // `without` are items that the visitor has taken out of what the captioner found by itself.
    Object.assign(this, { card, captioner, without: [], number: 0, state: "waiting" });
    this.text = element("div", { class: "text" });
  }

  get by() {
    return captioners().length > 1 ? element("p", { class: "by" }, this.captioner.name) : undefined;
  }

  say(...children) {
    this.text.replaceChildren(...[this.by, ...children].filter((child) => child !== undefined));
  }

  async write() {
    const number = (this.number += 1); // an answer to older settings comes too late
    const signal = this.card.batch.signal;
    const wait = (message) => this.say(element("p", { class: "working" }, message));
    this.state = "writing";
    wait("Writing …");
    this.card.update();
    try {
      const [path, parts] = this.card.request(this.captioner);
      const left = this.without.map((item) => ["without", item]);
      const whileBusy = () => number === this.number && wait("The server is busy, this picture waits for its turn …");
      const answer = await ask(path, [...parts, ...left], { signal, whileBusy });
      if (number !== this.number) return;
      this.answer = answer.images?.[0] ?? answer;
      this.state = "written";
      this.show(this.answer);
    } catch (error) {
      if (number !== this.number) return;
      this.answer = undefined;
      if (signal.aborted) this.end("cancelled", "Stopped", "No caption was written.", "Write it");
      else this.end("failed", "No caption for this one", error.message, "Try again");
    }
    this.card.update();
  }

  end(state, heading, reason, label) {
    this.state = state;
    const again = element("button", { class: "quiet", type: "button", onclick: () => this.write() }, label);
    this.say(element("h3", {}, heading), element("p", { dir: "auto" }, reason), again);
  }

  show({ captions: [best, ...others], prompt, retrieved }) {
    const { file, label } = this.card;
    const beside = (caption) => element("span", { class: "beside" }, score(caption), copyButton(caption.text));
    const alternatives = others.map((caption) => element("li", {}, element("span", { dir: "auto" }, caption.text), beside(caption)));
    const name = captioners().length > 1 ? undefined : element("span", { class: "name" }, label);
    const isLow = file && best.similarity < (this.captioner.lowSimilarity ?? -Infinity);
    this.say(
      element("h3", { dir: "auto" }, best.text || "(an empty caption)"),
      element("p", { class: "about" }, name, beside(best)),
      isLow ? element("p", { class: "low" }, LOW) : undefined,
      alternatives.length ? element("ol", { "aria-label": "Other captions" }, ...alternatives) : undefined,
      prompt || retrieved ? this.found(prompt?.items, retrieved) : undefined,
      file ? this.prefix() : undefined,
    );
    this.focus?.();
    this.focus = undefined;
  }

  // What the captioner found by itself: what its prompt was made of, and captions that its mapper read with the picture.
  // An item that is clicked is left out, and the caption written anew.
  found(prompt, retrieved) {
    const rewrite = (without, place) => {
      this.without = without;
      this.focus = () => { // the button that was clicked has gone
        const buttons = [...this.text.querySelectorAll(".items button")];
        if (document.activeElement === document.body) buttons[Math.min(place, buttons.length - 1)]?.focus();
      };
      this.write();
    };
    const list = (heading, items, first) => {
      const buttons = items.map((item, place) => {
        const name = `${item.text}: write without it`;
        const onclick = () => rewrite([...this.without, item.text], first + place);
        const cross = element("span", { class: "cross" }, "×");
        const text = element("span", { class: "item", dir: "auto" }, item.text);
        const title = "how well it fits the picture; click to write without it";
        return element("li", {}, element("button", { type: "button", "aria-label": name, title, onclick }, text, element("span", {}, item.score.toFixed(2)), cross));
      });
      return [element("p", {}, heading), element("ul", {}, ...buttons)];
    };
    const lists = [];
    if (prompt) lists.push(...list(prompt.length ? "Read before writing; take out what is wrong:" : "Nothing was read before writing.", prompt, 0));
    if (retrieved) lists.push(...list("Captions that were read with the picture; take out what is wrong:", retrieved, prompt?.length ?? 0));
    if (this.without.length) {
      const all = element("button", { type: "button", class: "all", onclick: () => rewrite([], 0) }, "Put all back");
      lists.at(-1).append(element("li", {}, all));
    }
    return element("div", { class: "items" }, ...lists);
  }

  prefix() {
    const inside = element("div", { class: "prefix", tabindex: 0, role: "group", "aria-label": "What the prefix says" });
    const details = element("details", {}, element("summary", {}, "What the prefix says"), inside);
    details.addEventListener("toggle", async () => {
      if (!details.open || inside.hasChildNodes()) return;
      inside.append(element("p", { class: "working" }, "Reading …"));
      try {
        const to = captioners().length > 1 ? [["captioner", this.captioner.name]] : [];
        const { images } = await ask("interpret", [["images", this.card.file], ["count", 3], ...to]);
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
