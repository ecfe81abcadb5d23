// All results as files that the browser makes, in the formats of `prefixcap caption`.

import { batches } from "./batches.js";
import { element } from "./dom.js";
import { captioners } from "./settings.js";
import { zip } from "./zip.js";

const FORMULA = /^'*[=+\-@\t\r\n＝＋－＠]/; // spreadsheets run a cell that begins so
const MOST_CHARACTERS = 80; // of a file's name
const RESERVED = /^(con|prn|aux|nul|com\d|lpt\d)(\.|$)/i; // names that Windows keeps

// What has captions, the oldest first: one entry for each picture and captioner.
function results() {
  const several = captioners().length > 1;
  return batches.flatMap((batch) => batch.cards).flatMap(({ label, file, columns }) =>
    columns.filter(({ answer }) => answer).map(({ answer, captioner }) => ({
      image: label,
      file,
      captioner: several ? captioner.name : undefined,
      captions: answer.captions.map(({ text }) => text),
      similarities: answer.captions.map(({ similarity }) => similarity),
    })),
  );
}

function cell(value) {
  if (typeof value === "number") return String(value);
  return `"${(FORMULA.test(value) ? `'${value}` : value).replaceAll('"', '""')}"`;
}

export function asCsv(entries) {
  const by = entries.some(({ captioner }) => captioner !== undefined) ? ["captioner"] : [];
  const scored = entries.some(({ similarities }) => similarities.some((one) => one != null)) ? ["similarity"] : [];
  const rows = entries.flatMap(({ image, captioner, captions, similarities }) =>
    captions.map((caption, at) => {
      const cells = { image, captioner, caption, similarity: similarities[at] ?? "" };
      return ["image", ...by, "caption", ...scored].map((name) => cell(cells[name]));
    }),
  );
  return [["image", ...by, "caption", ...scored].map(cell), ...rows].map((cells) => `${cells.join(",")}\n`).join("");
}

export function asJson(entries) {
  const lines = entries.map(({ image, captioner, captions, similarities }) => {
    const scored = similarities.every((one) => one == null) ? {} : { similarities };
    return JSON.stringify({ image, ...(captioner === undefined ? {} : { captioner }), captions, ...scored });
  });
  return `[\n${lines.join(",\n")}\n]\n`;
}

// A text file for each picture, a caption a line; in a folder for each captioner, where there are several.
export function asSidecars(entries) {
  const taken = new Set();
  const files = entries.filter(({ file }) => file).map(({ image, captioner, captions }) => {
    const folder = captioner === undefined ? "" : `${safe(captioner)}/`;
    const stem = folder + safe(image.replace(/\.[^.]*$/, ""));
    let name = stem;
    for (let again = 2; taken.has(name.toLowerCase()); again += 1) name = `${stem} (${again})`;
    taken.add(name.toLowerCase());
    return [`${name}.txt`, captions.map((caption) => `${caption}\n`).join("")];
  });
  return zip(files);
}

// A name of one file, on every system: nothing that leads elsewhere.
function safe(name) {
  const plain = [...name.replace(/[\p{C}\\/:*?"<>|]/gu, "_")].slice(0, MOST_CHARACTERS).join("").replace(/^[\s.]+|[\s.]+$/g, "");
  return RESERVED.test(plain) ? `_${plain}` : plain || "image";
}

function save(name, type, content) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

export function mountDownloads(part) {
  const kinds = {
    csv: () => save("captions.csv", "text/csv", asCsv(results())),
    json: () => save("captions.json", "application/json", asJson(results())),
    zip: () => save("captions.zip", "application/zip", asSidecars(results())),
  };
  for (const [kind, download] of Object.entries(kinds)) {
    part.querySelector(`#downloads [data-kind=${kind}]`).addEventListener("click", download);
  }
}
