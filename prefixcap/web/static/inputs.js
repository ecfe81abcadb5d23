// How pictures come in: chosen, dropped, pasted, taken with the camera, or examples.

import { addBatch } from "./batches.js";
import { element, show } from "./dom.js";
import { chosen, datastore, known } from "./settings.js";

export function addPictures(files) {
  const text = known();
  const items = [...files].map((file) => {
    const request = (captioner) => {
      const read = text ? [["prompts", text]] : datastore(captioner);
      return ["caption", [["images", file], ...read, ...chosen(captioner)]];
    };
    return [file.name, element("div", { class: "picture" }, show(file)), request, file];
  });
  addBatch("picture", items);
}

// Files that are chosen in `input`, or dropped on `place`.
export function takesFiles(place, input, take) {
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = "";
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

export async function example(number) {
  const blob = await (await fetch(`examples/${number}.jpg`)).blob();
  return new File([blob], `example ${number + 1}`, { type: "image/jpeg" });
}

async function takePicture() {
  const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } }).catch(() => {});
  const video = element("video", { autoplay: true, playsinline: true, "aria-label": "What the camera sees" });
  video.muted = true;
  const dialog = element(
    "dialog",
    {
      class: "camera",
      "aria-label": "Camera",
      onclose: () => (stream?.getTracks().forEach((track) => track.stop()), dialog.remove()),
    },
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

export function mountInputs(part) {
  takesFiles(part.querySelector("#drop"), part.querySelector("#files"), addPictures);
  part.querySelectorAll(".example").forEach((button, number) => {
    button.addEventListener("click", async () => addPictures([await example(number)]));
  });
  const camera = part.querySelector("#camera");
  camera.hidden = !navigator.mediaDevices?.getUserMedia; // which browsers allow on localhost and https only
  camera.addEventListener("click", takePicture);
  document.addEventListener("paste", (event) => addPictures(event.clipboardData.files));
}
