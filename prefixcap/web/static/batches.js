// What was added at once is a batch, with its own heading and progress. The newest is on top.

import { Card } from "./cards.js";
import { announce, counted, element, forget, newId } from "./dom.js";
import { wanted } from "./settings.js";

const QUARTERS = 4; // of a batch, each of which is announced
const MANY = 8; // pictures, from which on that is so

export const batches = []; // the oldest first
let part;
let number = 0;

class Batch {
  // `noun`: what its cards are. Each item has the arguments of `Card` between `batch` and `by`.
  constructor(noun, items) {
    number += 1;
    const id = newId("batch");
    this.name = `Batch ${number}`;
    this.noun = noun;
    this.announced = 0;
    this.controller = new AbortController();
    const by = wanted();
    this.cards = items.map((item) => new Card(this, ...item, by));
    this.heading = element("h2", { id, tabindex: -1 }, `${this.name}: ${counted(items.length, noun)}`);
    this.status = element("span", { class: "status" });
    this.progress = element("progress", { max: items.length, value: 0, "aria-label": `Progress of ${this.name.toLowerCase()}` });
    this.button = element("button", { type: "button", class: "quiet", onclick: () => (this.stopped ? this.goOn() : this.cancel()) });
    const head = element("div", { class: "batch-head" }, this.heading, this.status, this.progress, this.button);
    this.box = element("section", { class: "batch", "aria-labelledby": id }, head, ...this.cards.map((card) => card.box));
  }

  // Of requests that begin now.
  get signal() {
    if (this.stopped) this.controller = new AbortController();
    return this.controller.signal;
  }

  get stopped() {
    return this.controller.signal.aborted;
  }

  // All captions anew, by the settings of now.
  write() {
    this.controller.abort(); // what is still on its way
    this.announced = 0;
    this.cards.forEach((card) => card.write());
  }

  goOn() {
    announce(`${this.name} goes on.`);
    this.cards.filter((card) => !card.settled).forEach((card) => card.write());
  }

  // The server is told, too: it does not begin what is waiting there.
  cancel() {
    this.controller.abort();
    announce(`${this.name} was cancelled.`);
    this.update();
  }

  update() {
    const total = this.cards.length;
    const settled = this.cards.filter((card) => card.settled).length;
    const failed = settled - this.cards.filter((card) => card.captioned).length;
    const isWorking = settled < total;
    this.progress.value = settled;
    this.progress.hidden = !isWorking || this.stopped;
    this.button.textContent = this.stopped ? "Go on" : "Cancel";
    const without = failed ? `, ${failed} without a caption` : "";
    this.status.textContent = isWorking ? `${settled} of ${total}${this.stopped ? ", cancelled" : ""}${without}` : without.slice(2);
    if (!isWorking && document.activeElement === this.button) this.heading.focus(); // the button goes
    this.button.hidden = !isWorking;
    this.tell(settled, total, without);
    updateHead();
  }

  tell(settled, total, without) {
    const steps = total < MANY ? 1 : QUARTERS;
    const step = Math.floor((steps * settled) / total);
    if (step <= this.announced) return;
    this.announced = step;
    const [card] = this.cards;
    if (total === 1) announce(card.captioned ? `${card.label}: ${captionsOf(card)}` : `${card.label}: no caption`);
    else announce(`${this.name}: ${settled} of ${counted(total, this.noun)}${without}`);
  }
}

function captionsOf(card) {
  return card.columns.map(({ answer }) => answer.captions[0].text).join("; ");
}

// Show items as a new batch, and have them captioned.
export function addBatch(noun, items) {
  if (!items.length) return;
  const batch = new Batch(noun, items);
  batches.push(batch);
  part.querySelector("#results").prepend(batch.box);
  batch.write();
  if (window.innerWidth < 700) batch.box.scrollIntoView({ behavior: "smooth", block: "nearest" });
}

function updateHead() {
  const cards = batches.flatMap((batch) => batch.cards);
  part.querySelector("#empty").hidden = cards.length > 0;
  part.querySelector("#results-head").hidden = !cards.length;
  part.querySelector("#count").textContent = counted(cards.length, "result");
  part.querySelector("#downloads").hidden = !cards.some((card) => card.columns.some(({ answer }) => answer));
}

function clear() {
  for (const batch of batches.splice(0)) {
    batch.controller.abort();
    forget(batch.box);
    batch.box.remove();
  }
  updateHead();
  announce("All results were removed.");
  document.querySelector("#files").focus();
}

export function mountBatches(element) {
  part = element;
  part.querySelector("#again").addEventListener("click", () => batches.forEach((batch) => batch.write()));
  part.querySelector("#clear").addEventListener("click", clear);
  document.querySelector("#skip").addEventListener("click", (event) => {
    event.preventDefault(); // an address with a query is another page than its fragment
    part.querySelector(batches.length ? "#results-head" : "#empty").focus();
  });
  updateHead();
}
