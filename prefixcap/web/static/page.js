// The page of `prefixcap serve`. Its parts are brought to life here, each when Gradio has made it.

import { mountArithmetic } from "./arithmetic.js";
import { mountBatches } from "./batches.js";
import { mountDownloads } from "./downloads.js";
import { mountInputs } from "./inputs.js";
import { setSettings } from "./settings.js";

window.prefixcap = {
  settings: setSettings,
  captions: mountInputs,
  arithmetic: mountArithmetic,
  results(part) {
    mountBatches(part);
    mountDownloads(part);
  },
};
