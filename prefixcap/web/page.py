"""The page: Gradio lays it out and draws its settings, `static/page.js` sends pictures to the API and shows what comes.

Gradio's own uploads and functions are not used: they keep files on the disk, and what is sent to them may name paths
and URLs. So the page has no way to the model but the API, with its checks, and pictures are nowhere but in the browser
and, for as long as a request takes, in memory.
"""

import html
import json
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from gradio.route_utils import BUILD_PATH_LIB, STATIC_PATH_LIB
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from prefixcap.captioner import Captioner
from prefixcap.decoding import DECODERS
from prefixcap.web.gate import PAGE, PAGE_FOLDERS
from prefixcap.web.schema import MOST_CHARACTERS, decoder_settings

DECODER_LABELS = {
    "beam": "Beam search: the likeliest captions",
    "greedy": "Greedy: the likeliest word, one after another",
    "nucleus": "Nucleus: drawn at random",
    "contrastive": "Contrastive: likely, without repeating itself",
    "clipcap": "ClipCap's beam search",
    "clipcap_greedy": "ClipCap's greedy search",
}

# Each setting of a decoder: what it is called, what it does, least, most, step, what it begins with.
SLIDERS = {
    "count": ("Captions", "for each picture", 1, 10, 1, 3),
    "beams": ("Beams", "captions that are kept at every step; not fewer than captions", 1, 10, 1, 5),
    "top_p": ("Top p", "draws from the likeliest words that have together this probability", 0.05, 1.0, 0.05, 0.9),
    "temperature": ("Temperature", "below 1, likely words are likelier still", 0.1, 2.0, 0.1, 1.0),
    "top_k": ("Top k", "words to choose from", 1, 20, 1, 4),
    "penalty": ("Penalty", "on likeness to what was written", 0.0, 1.0, 0.05, 0.6),
    "max_tokens": ("Longest caption", "in tokens, which are words or parts of them", 5, 100, 1, 67),
}

# As on the page of an evaluation.
COLOURS = {
    "body_background_fill": "#faf9f7", "body_background_fill_dark": "#151413",
    "background_fill_primary": "#ffffff", "background_fill_primary_dark": "#1e1d1b",
    "background_fill_secondary": "#f0eeea", "background_fill_secondary_dark": "#292724",
    "block_background_fill": "#ffffff", "block_background_fill_dark": "#1e1d1b",
    "input_background_fill": "#faf9f7", "input_background_fill_dark": "#292724",
    "border_color_primary": "#e3dfd8", "border_color_primary_dark": "#35322e",
    "body_text_color": "#1f1d1a", "body_text_color_dark": "#edebe7",
    "body_text_color_subdued": "#625d55", "body_text_color_subdued_dark": "#aaa499",
    "block_info_text_color": "#625d55", "block_info_text_color_dark": "#aaa499",
    "link_text_color": "#0f6a5b", "link_text_color_dark": "#6fd0bd",
    "color_accent": "#0f6a5b",
    "slider_color": "#0f6a5b", "slider_color_dark": "#3f9a89",
    "checkbox_background_color_selected": "#0f6a5b", "checkbox_background_color_selected_dark": "#3f9a89",
}  # fmt: skip

ADDRESS = "http://page.invalid"  # at which Gradio draws the page, once

DROP_ZONE = """
<label id="drop" tabindex="0">
  <input id="files" type="file" accept="image/*" multiple>
  <strong>Drop photographs here</strong>
  <span>or click to choose them, or paste one</span>
</label>
<button id="camera" class="quiet" type="button" hidden>Use the camera</button>
{examples}
"""

RESULTS = """
<div id="results-head" hidden><span id="count"></span>
  <button id="again" class="quiet" type="button">Write again</button>
  <button id="clear" class="quiet" type="button">Clear</button></div>
<div id="results" aria-live="polite"></div>
<div id="empty"><p><strong>Captions will appear here.</strong></p>
  <p>With each comes how close CLIP finds it to the picture, and what the prefix says that the language model goes on
  from. Pictures are not kept.</p></div>
"""

SUM = """
<p class="hint">Add and subtract pictures and words; the captioner says what comes of it.</p>
<div id="terms"></div>
<div class="actions"><button id="work-out" type="button">Work it out</button>{example}</div>
"""


def mount_page(app: FastAPI, captioner: Captioner, examples: int) -> list[str]:
    """Put the page at "/".

    Args:
        app: the API, with what is in `static/`.
        captioner: that is served.
        examples: pictures at /examples/0.jpg and on, which the page offers.

    Returns:
        Paths of all that the page consists of, beside those of the API.
    """
    with gr.Blocks(title="prefixcap", analytics_enabled=False) as page:
        gr.HTML(_header(captioner), apply_default_css=False)
        with gr.Row(equal_height=False, elem_id="columns"):
            with gr.Column(scale=2, min_width=330):
                with gr.Tabs():
                    with gr.Tab("Captions"):
                        _part("captions", DROP_ZONE.format(examples=_examples(examples)))
                    with gr.Tab("Arithmetic"):
                        example = '<button id="example" class="quiet" type="button">An example</button>'
                        _part("arithmetic", SUM.format(example=example if examples else ""))
                with gr.Accordion("How captions are written", open=False):
                    settings = _settings(captioner)
            with gr.Column(scale=3, min_width=330):
                _part("results", RESULTS)
        parts = list(settings.values())
        takes = {decoder: decoder_settings(decoder) for decoder in DECODERS}
        tell = f"(...values) => {{ prefixcap.settings({json.dumps(list(settings))}, values, {json.dumps(takes)}) }}"
        gr.on([page.load, *(part.change for part in parts)], fn=None, inputs=parts, js=tell)
    theme = gr.themes.Base(
        primary_hue="teal", neutral_hue="stone", radius_size="lg", font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(**COLOURS)  # fmt: skip
    hidden = " ".join(f"body[data-decoder={name}] .setting:not(.for-{name}) {{ display: none }}" for name in DECODERS)
    head = f'<link rel="stylesheet" href="page.css"><style>{hidden}</style>'
    gr.mount_gradio_app(app, page, path="/", theme=theme, head=head, footer_links=[], run_history=False, ssr_mode=False)
    gradio = app.router.routes[-1]
    assert isinstance(gradio, Mount)
    drawn = _without_address(TestClient(gradio.app, ADDRESS).get("/").text)

    async def send(request: Request) -> HTMLResponse:
        start = _start(request.scope.get("root_path", ""))
        return HTMLResponse(drawn.replace("<head>", f"<head>{start}", 1), headers={"Cache-Control": "no-cache"})

    app.router.routes.insert(0, Route("/", send))
    files = [
        f"{path}{file.relative_to(folder).as_posix()}"
        for path, folder in zip(PAGE_FOLDERS, (BUILD_PATH_LIB, STATIC_PATH_LIB), strict=True)
        for file in Path(folder).rglob("*")
        if file.is_file()
    ]
    return [*PAGE, *files]


def _start(prefix: str) -> str:
    """What comes first in the page: its addresses are relative to this, whatever Gradio's part says."""
    # The browser may be at the prefix without the "/" at its end, to which some addresses of Gradio are relative.
    where = "new URL(location.search + location.hash, document.baseURI)"
    arrive = f"<script>history.replaceState(null, '', {where})</script>" if prefix else ""
    return f"""<base href="{prefix or "."}/">{arrive}
        <link rel="icon" href="favicon.ico"><script src="page.js"></script>"""


def _without_address(page: str) -> str:
    """A page of Gradio that finds its way by where the browser got it, whatever a proxy made of the address."""
    where = 'new URL(".", document.baseURI).href.slice(0, -1)'
    return page.replace(json.dumps(ADDRESS), where).replace('<link rel="manifest" href="/manifest.json" />', "")


def _part(name: str, markup: str) -> None:
    """A part of the page that the function of this name in page.js brings to life."""
    gr.HTML(markup, js_on_load=f"prefixcap.{name}(element)", apply_default_css=False)


def _header(captioner: Captioner) -> str:
    encoder, lm = (html.escape(name) for name in (captioner.encoder_identity.name, captioner.language_model.name))
    return f"""<header id="head"><img src="favicon.ico" alt=""><div><h1>prefixcap</h1>
        <p>Captions by <b>CLIP</b> ({encoder}) and a <b>language model</b> ({lm})</p></div>
        <a href="docs">HTTP API</a></header>"""


def _examples(count: int) -> str:
    if not count:
        return ""
    pictures = [
        f'<button type="button" class="example"><img src="examples/{number}.jpg" alt="example {number + 1}"></button>'
        for number in range(count)
    ]
    return f"""<p class="hint">No photograph at hand? Take one of the small world:</p>
        <div id="examples">{"".join(pictures)}</div>"""


def _settings(captioner: Captioner) -> dict[str, Any]:
    """The settings as Gradio's components, by name. A slider is shown with the decoders that take it."""
    takes = {name: decoder_settings(name) for name in DECODERS}
    context = captioner.language_model.context or 10**6
    settings: dict[str, Any] = {
        "decode": gr.Dropdown(
            [(label, name) for name, label in DECODER_LABELS.items()], value="beam", label="Decoder", filterable=False
        )
    }
    for name, (label, info, least, most, step, value) in SLIDERS.items():
        decoders = [decoder for decoder in DECODERS if name in takes[decoder]]
        if name == "top_k":
            decoders.remove("nucleus")  # top_p does there
        if name == "max_tokens":
            most = min(most, context - captioner.prefix_length)
            value = min(most, value)
        classes = ["setting", *(f"for-{decoder}" for decoder in decoders)]
        settings[name] = gr.Slider(least, most, value, step=step, label=label, info=info, elem_classes=classes)
    settings["prompt"] = gr.Textbox(
        "", label="Beginning", info="of every caption", placeholder="e.g. A photo of", max_length=MOST_CHARACTERS
    )
    settings["by_similarity"] = gr.Checkbox(True, label="The caption closest to the picture comes first")
    return settings
