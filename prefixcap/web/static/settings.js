// What is sent with a picture: the captioners that were chosen, the decoder's settings, and what is known.

// The options of a single decoder are called `decoder.option`.
let settings = { decode: "beam", count: 3, by_similarity: true };
let takes = { beam: ["count"] };
let all;

export function setSettings(names, values, taken) {
  takes = taken;
  settings = Object.fromEntries(names.map((name, at) => [name, values[at]]));
  document.body.dataset.decoder = settings.decode;
}

// All captioners of the server: name, lowSimilarity, readsTexts, and whether it retrieves from `datastores`.
export function captioners() {
  all ??= JSON.parse(document.querySelector("#head").dataset.captioners);
  return all;
}

// Those that the visitor wants; the first, if none is ticked.
export function wanted() {
  const names = [...document.querySelectorAll("#captioners input:checked")].map((box) => box.value);
  const some = captioners().filter(({ name }) => names.includes(name));
  return some.length ? some : captioners().slice(0, 1);
}

// Fields of a request to a captioner.
export function chosen(captioner) {
  const { decode, prompt } = settings;
  const fields = { decode, prompt, by_similarity: settings.by_similarity && captioner.readsTexts };
  for (const name of takes[decode]) fields[name] = settings[`${decode}.${name}`] ?? settings[name];
  if (fields.beams < fields.count) fields.beams = fields.count; // there are no more captions than beams
  const given = Object.entries(fields).filter(([, value]) => value !== undefined);
  return captioners().length > 1 ? [["captioner", captioner.name], ...given] : given;
}

export function known() {
  return document.querySelector("#known input").value.trim();
}

// Where captions are retrieved from, if there is a choice; what is known of a picture takes their place.
export function datastore(captioner) {
  const select = document.querySelector("#datastore select");
  return select && captioner.datastores.includes(select.value) ? [["datastore", select.value]] : [];
}
