// Sums and differences of pictures and words.

import { addBatch } from "./batches.js";
import { element, show } from "./dom.js";
import { example, takesFiles } from "./inputs.js";
import { chosen } from "./settings.js";

const ORDINALS = ["first", "second", "third"];

function newTerm(at) {
  const term = { file: undefined };
  const label = (what) => `${what} of the ${ORDINALS[at]} term`;
  term.sign = element("select", { "aria-label": label("sign") }, element("option", { value: 1 }, "+"), element("option", { value: -1 }, "−"));
  term.weight = element("input", { type: "number", min: 0, max: 10, step: 0.1, value: 1, "aria-label": label("weight") });
  term.words = element("input", { type: "text", maxlength: 200, placeholder: "or words", "aria-label": label("words") });
  const input = element("input", { type: "file", accept: "image/*", "aria-label": label("picture") });
  const place = element("label", { class: "small-drop", title: "a picture" }, input, "picture");
  term.put = (file) => {
    term.file = file;
    place.replaceChildren(input, file ? show(file) : "picture");
    term.words.hidden = Boolean(file);
    remove.hidden = !file;
  };
  const onclick = () => {
    term.put();
    term.words.focus(); // the button has gone
  };
  const remove = element("button", { type: "button", class: "quiet", hidden: true, onclick }, "Remove");
  remove.setAttribute("aria-label", `remove the ${label("picture")}`);
  takesFiles(place, input, ([file]) => file && term.put(file));
  term.box = element("div", { class: "term" }, term.sign, term.weight, place, remove, term.words);
  if (at === 1) term.sign.value = -1;
  return term;
}

function workOut(terms) {
  const parts = [];
  const shown = [];
  const names = [];
  for (const { file, words, sign: chosenSign, weight } of terms) {
    const text = words.value.trim();
    if (!file && !text) continue;
    const factor = chosenSign.value * weight.value;
    parts.push(...(file ? [["images", file], ["image_weights", factor]] : [["texts", text], ["text_weights", factor]]));
    const sign = factor < 0 ? "−" : shown.length ? "+" : "";
    const number = Math.abs(factor) === 1 ? "" : `${Math.abs(factor)} ×`;
    const operand = file ? show(file) : element("q", { dir: "auto" }, text);
    shown.push(element("span", {}, element("b", {}, sign, " ", number), operand));
    names.push([sign, number, file ? file.name : text].filter(Boolean).join(" "));
  }
  const picture = element("div", { class: "picture sum" }, ...shown);
  const request = (captioner) => ["arithmetic", [...parts, ...chosen(captioner)]];
  addBatch("sum", [[names.join(" ") || "an empty sum", picture, request, undefined]]);
}

export function mountArithmetic(part) {
  const terms = ORDINALS.map((_, at) => newTerm(at));
  part.querySelector("#terms").append(...terms.map(({ box }) => box));
  part.querySelector("#work-out").addEventListener("click", () => workOut(terms));
  part.querySelector("#example")?.addEventListener("click", async () => {
    for (const [at, number] of [[0, 0], [1, 4], [2, 3]]) terms[at].put(await example(number));
    workOut(terms);
  });
}
