"""The page: Gradio lays it out with its settings, `static/page.js` sends pictures to the API and shows the answers.

Gradio's own uploads and functions are not used: they keep files on the disk, and what is sent to them may name paths
and URLs. So the page has no way to the model but the API, with its checks, and pictures are nowhere but in the browser
and, for as long as a request takes, in memory.
"""

import html
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from gradio.route_utils import BUILD_PATH_LIB, STATIC_PATH_LIB
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from prefixcap.captioner import Captioner
from prefixcap.decoding import DECODERS, decoder_label, decoder_options, limits, takes_num_captions
from prefixcap.encoders import reads_texts
from prefixcap.utils.options import Option
from prefixcap.web.about import about
from prefixcap.web.gate import PAGE, PAGE_FOLDERS
from prefixcap.web.schema import MOST_CHARACTERS, MOST_INTEGER, MOST_PROMPT_CHARACTERS, decoder_settings, request_bounds

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
<label id="drop">
  <input id="files" type="file" accept="image/*" multiple>
  <strong>Drop photographs here</strong>
  <span>or click to choose them, or paste one</span>
</label>
<button id="camera" class="quiet" type="button" hidden>Use the camera</button>
<label id="known">About the pictures
  <input type="text" maxlength="{characters}" placeholder="e.g. Taken at a horse race." aria-describedby="known-hint">
  <span id="known-hint" class="hint">What you know of those that you add next. It is read before the caption is
    written{own}.</span>
</label>
{datastores}{examples}
"""

DATASTORES = """<label id="datastore">Retrieve captions from
  <select aria-describedby="datastore-hint">{options}</select>
  <span id="datastore-hint" class="hint">Those nearest to a picture are read before its caption is written. "Write
    again" retrieves anew for pictures that are there.</span>
</label>
"""

RESULTS = """
<p id="announce" class="unseen" role="status"></p>
<div id="results-head" tabindex="-1" hidden><span id="count"></span>
  <button id="again" class="quiet" type="button">Write again</button>
  <button id="clear" class="quiet" type="button">Clear</button>
  <div id="downloads" role="group" aria-label="Download all results"><span aria-hidden="true">Download</span>
    <button type="button" data-kind="csv">CSV</button>
    <button type="button" data-kind="json">JSON</button>
    <button type="button" data-kind="zip">Text files (zip)</button></div></div>
<div id="results"></div>
<div id="empty" tabindex="-1"><p><strong>Captions will appear here.</strong></p>
  <p>Each comes with its similarity to the picture, by the encoder, and with what the prefix says that the language
  model continues. Pictures are not kept.</p></div>
"""

CHOICE = """
<fieldset id="captioners"><legend>Captioners</legend>{boxes}</fieldset>
"""

SUM = """
<p class="hint">Add and subtract pictures and words; the captioner describes the result.</p>
<div id="terms"></div>
<div class="actions"><button id="work-out" type="button">Work it out</button>{example}</div>
"""


def mount_page(app: FastAPI, captioners: Mapping[str, Captioner], examples: int) -> list[str]:
    """Put the page at "/".

    Args:
        app: the API, with what is in `static/`.
        captioners: that are served, by name.
        examples: pictures at /examples/0.jpg and on, which the page offers.

    Returns:
        Paths of all that the page consists of, beside those of the API.
    """
    with gr.Blocks(title="prefixcap", analytics_enabled=False) as page:
        gr.HTML(_header(captioners), apply_default_css=False)
        with gr.Row(equal_height=False, elem_id="columns"):
            with gr.Column(scale=2, min_width=330):
                if len(captioners) > 1:
                    gr.HTML(_choice(captioners), apply_default_css=False)
                with gr.Tabs():
                    with gr.Tab("Captions"):
                        _part("captions", _drop_zone(list(captioners.values()), examples))
                    with gr.Tab("Arithmetic"):
                        example = '<button id="example" class="quiet" type="button">An example</button>'
                        _part("arithmetic", SUM.format(example=example if examples else ""))
                with gr.Accordion("How captions are generated", open=False):
                    settings = _settings(list(captioners.values()))
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
        <link rel="icon" href="favicon.ico"><script type="module" src="page.js"></script>"""


def _without_address(page: str) -> str:
    """A page of Gradio that finds its way by where the browser got it, whatever a proxy made of the address."""
    where = 'new URL(".", document.baseURI).href.slice(0, -1)'
    return page.replace(json.dumps(ADDRESS), where).replace('<link rel="manifest" href="/manifest.json" />', "")


def _part(name: str, markup: str) -> None:
    """A part of the page that the function of this name in page.js brings to life."""
    gr.HTML(markup, js_on_load=f"prefixcap.{name}(element)", apply_default_css=False)


def _header(captioners: Mapping[str, Captioner]) -> str:
    known = [
        {
            "name": name,
            "lowSimilarity": captioner.low_similarity,
            "readsTexts": reads_texts(captioner.encoder()),
            "datastores": [*filter(None, captioner.datastores)],
        }
        for name, captioner in captioners.items()
    ]
    parts = {(each.encoder_identity.name, each.language_model.name) for each in captioners.values()}
    by = "Captions by image encoders and language models"
    if len(parts) == 1:
        encoder, lm = (html.escape(name) for name in parts.pop())
        by = f"Captions by an <b>image encoder</b> ({encoder}) and a <b>language model</b> ({lm})"
    banner = "".join(_banner(name if len(captioners) > 1 else "", each) for name, each in captioners.items())
    return f"""<a id="skip" href="#results-head">Skip to the results</a>
        <header id="head" data-captioners="{html.escape(json.dumps(known))}"><img src="favicon.ico" alt=""><div>
        <h1>prefixcap</h1><p>{by}</p></div><a href="docs">HTTP API</a></header>
        <section id="about" aria-label="What the captions were learned from">{banner}</section>"""


def _banner(name: str, captioner: Captioner) -> str:
    """What a captioner was trained on, and cannot do. Its files may be a stranger's: they are shown as text."""
    said = about(captioner)
    shown = (
        f"<p><b>{html.escape(name)}</b> {html.escape(said.summary)}</p>"
        if name
        else f"<p>{html.escape(said.summary)}</p>"
    )
    if not said.training and not said.limitations:
        return shown
    paragraphs = "".join(f"<p>{html.escape(text)}</p>" for text in said.training)
    items = "".join(f"<li>{html.escape(text)}</li>" for text in said.limitations)
    of = f' <span class="unseen">by {html.escape(name)}</span>' if name else ""
    return f"""{shown}<details><summary>About the pictures it knows, and what it cannot do{of}</summary>
        {paragraphs}<ul>{items}</ul></details>"""


def _choice(captioners: Mapping[str, Captioner]) -> str:
    boxes = [
        f'<label><input type="checkbox" value="{html.escape(name)}" checked>{html.escape(name)}</label>'
        for name in captioners
    ]
    return CHOICE.format(boxes="".join(boxes))


def _drop_zone(captioners: Sequence[Captioner], examples: int) -> str:
    makes_prompts = any(captioner.prompts is not None for captioner in captioners)
    own = ", in place of what the captioner finds by itself" if makes_prompts else ""
    names = dict.fromkeys(name for captioner in captioners for name in filter(None, captioner.datastores))
    options = "".join(f"<option>{html.escape(name)}</option>" for name in names)
    datastores = DATASTORES.format(options=options) if len(names) > 1 else ""
    return DROP_ZONE.format(
        examples=_examples(examples), characters=MOST_PROMPT_CHARACTERS, own=own, datastores=datastores
    )


def _examples(count: int) -> str:
    if not count:
        return ""
    pictures = [
        f'<button type="button" class="example"><img src="examples/{number}.jpg" alt="example {number + 1}"></button>'
        for number in range(count)
    ]
    return f"""<p class="hint">No photograph at hand? Take one of the small world:</p>
        <div id="examples">{"".join(pictures)}</div>"""


def _settings(captioners: Sequence[Captioner]) -> dict[str, Any]:
    """The settings as Gradio's components. What a single decoder takes is called `decoder.option`, and is shown with
    that decoder; what all decoders take is called by its name."""
    several = [f"for-{decoder}" for decoder in DECODERS if takes_num_captions(decoder)]
    settings: dict[str, Any] = {
        "decode": gr.Dropdown(
            [(decoder_label(name), name) for name in DECODERS], value="beam", label="Decoder", filterable=False
        ),
        "count": gr.Slider(
            1, 10, 3, step=1, label="Captions", info="for each picture", elem_classes=["setting", *several]
        ),
    }
    shared = limits()
    for decoder in DECODERS:
        for name, option in decoder_options(decoder).items():
            if name not in shared:
                settings[f"{decoder}.{name}"] = _component(name, option, [f"for-{decoder}"])
    room = min((each.language_model.context or MOST_INTEGER) - each.prefix_length for each in captioners)
    for name, option in shared.items():
        settings[name] = _component(name, option, [f"for-{decoder}" for decoder in DECODERS], room)
    settings["prompt"] = gr.Textbox(
        "", label="Beginning", info="of every caption", placeholder="e.g. A photo of", max_length=MOST_CHARACTERS
    )
    label = "The caption closest to the picture comes first"
    settings["by_similarity"] = gr.Checkbox(
        True, label=label, visible=any(reads_texts(each.encoder()) for each in captioners)
    )
    return settings


def _component(name: str, option: Option, decoders: list[str], room: float = math.inf) -> Any:
    """What an option of decoders is set with.

    Args:
        name, option: of the decoder.
        decoders: classes that show it.
        room: the largest number that makes sense.
    """
    about: dict[str, Any] = {
        "label": name.replace("_", " ").capitalize(),
        "info": option.description.replace("`", ""),
        "elem_classes": ["setting", *decoders],
    }
    if option.kind is bool:
        return gr.Checkbox(option.default is True, **about)
    if option.kind is str:
        return gr.Textbox("" if option.default in (None, inspect.Parameter.empty) else option.default, **about)
    bounds = request_bounds(name, option)
    step = 1 if option.kind is int else 0.05
    least = step * math.ceil(max(bounds.get("ge", 0), bounds.get("gt", 0) + step * ("gt" in bounds)) / step)
    most = min(bounds.get("le", 10), bounds.get("lt", math.inf) - step, room)
    default = option.default if isinstance(option.default, int | float) else least
    return gr.Slider(least, most, min(max(default, least), most), step=step, **about)
