"""What the documentation names exists: commands and their options, choices, files, links, numbers."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from typer.core import TyperGroup

from benchmarks import gpu_hours
from prefixcap.commands import COMMANDS, load
from prefixcap.commands.compare_systems import PUBLISHED
from prefixcap.commands.reproduce.papers import read_papers, rehearsal
from prefixcap.commands.reproduce.walk import Walk
from tests.conftest import ROOT
from tests.docs.pages import PAGES, commands, name_of

CONF = ROOT / "conf"
GROUPS = [folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name not in ("hydra", "recipe")]
CHOICE = re.compile(rf"(?<![\w.])({'|'.join(GROUPS)})=([a-z]\w*)")
FILE = re.compile(r"`((?:prefixcap|data_prep|docs|tests|benchmarks|studies|\.ci|\.github)/[^`*…<> ]*)`")
LINK = re.compile(r"\]\(([^)#: ]+)(?:#[^)]*)?\)")
ALIASES = {
    "python train.py": "prefixcap train",
    "python eval.py": "prefixcap eval",
    "python -m data_prep.embed": "prefixcap embed",
    "python -m data_prep.verify": "prefixcap verify",
    "python -m data_prep.import_features": "prefixcap import-features",
    "python -m data_prep.export_features": "prefixcap export-features",
    "python docs/examples/add_mapper.py": "prefixcap train",
    "python docs/examples/add_encoder.py": "prefixcap train",
    "python docs/examples/add_decoder.py": "prefixcap",
    "python docs/examples/add_objective.py": "prefixcap train",
    "python docs/examples/add_metric.py": "prefixcap eval",
    "python docs/examples/add_reader.py": "prefixcap embed",
}


def calls() -> list[str]:
    """Every call of `prefixcap` in the documentation, under any of its names, with an x for each placeholder."""
    unique: dict[str, None] = {}
    for page in PAGES:
        for command in commands(page):
            for alias, name in ALIASES.items():
                command = re.sub(rf"^{re.escape(alias)}(?= |$)", name, command)
            command = re.sub(r"\$\([^)]*\)", "x", command.partition(" && ")[0]).replace("…", "x")
            if command.startswith("prefixcap ") and "[GROUP" not in command:
                unique[" ".join(command.split())] = None
    papers, files = read_papers()
    for paper in papers.values():  # what `prefixcap reproduce` runs
        for steps in (paper, rehearsal(paper)):
            described = Walk(steps, files, Path("runs")).described()
            unique |= dict.fromkeys(re.findall(r"^ +(prefixcap .*)$", described, flags=re.MULTILINE))
    return list(unique)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_choices_files_and_links_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for group, choice in CHOICE.findall(re.sub(r"```python.*?```", "", text, flags=re.DOTALL)):  # no keyword arguments
        assert (CONF / group / f"{choice}.yaml").is_file(), f"{group}={choice}"
    for file in FILE.findall(text):
        assert (ROOT / file).exists(), file
    for link in LINK.findall(text):
        assert (page.parent / link).exists(), link


def test_every_choice_is_in_the_documents() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for group in GROUPS:
        for file in (CONF / group).glob("[!_]*.yaml"):
            assert re.search(rf"(?<!\w){file.stem}(?!\w)", text), f"{group}={file.stem}"


@pytest.mark.parametrize("call", calls())
def test_calls_are_understood(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, name, *options = shlex.split(call)
    if name.startswith("-") or name == "COMMAND":
        name, options = "doctor", []  # of all commands
    command = COMMANDS[name]
    if not options or "--help" in options:
        return
    if command.uses_hydra:
        overrides = [option for option in options if not option.startswith("--")]
        if "--multirun" in options:
            overrides = [option for option in overrides if "range(" not in option and "hydra/" not in option]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            compose(command.module, [option for option in overrides if option != "job"])
    else:  # the checkpoints and datastores that documents name are not here
        monkeypatch.setattr("prefixcap.commands.common.options.require_captioner", lambda path: path)
        monkeypatch.setattr("prefixcap.commands.datastore.captions.require_store", lambda path: path)
        called = load(name)
        context = called.make_context(name, list(options))
        if isinstance(called, TyperGroup):  # its sub-command, in the same way
            own, loaded, rest = called.resolve_command(context, options)
            if rest:
                loaded.make_context(own, rest)


def test_hours_are_those_of_the_script() -> None:
    text = (ROOT / "docs" / "reproduce" / "index.md").read_text(encoding="utf-8")
    assert gpu_hours.table() in text
    hours = {f"{run.hours():.1f}" for run in gpu_hours.RUNS}
    for page in (ROOT / "docs" / "reproduce").glob("*.md"):
        for number in re.findall(r"(\d+\.\d) GPU hours", page.read_text(encoding="utf-8")):
            assert number in hours | {"1.3"}, f"{page.name}: {number}"  # that is 5,000 times 0.93 seconds
    text = (ROOT / "docs" / "use" / "gpus.md").read_text(encoding="utf-8")
    for name in ("measured_table", "systems_table", "images_table", "exchange_table"):
        assert getattr(gpu_hours, name)() in text, name
    for number in (gpu_hours.CARD, f"{gpu_hours.READ} photographs", f"{gpu_hours.DECODED:,} captions a second"):
        assert number in text, number


def test_published_numbers_are_those_of_compare_systems() -> None:
    text, own = (
        (ROOT / "docs" / "reproduce" / page).read_text(encoding="utf-8") for page in ("maccap.md", "capdec_decap.md")
    )
    sections = re.split(
        r"compare-systems --source (\w+) --target (\w+).*\n", text
    )  # before, source, target, section, ...
    tables = dict(zip(zip(sections[1::3], sections[2::3], strict=True), sections[3::3], strict=True))
    for command, rows in PUBLISHED.items():
        for system, numbers in rows.items():
            cells = " | ".join("-" if number is None else f"{number:.3f}" for number in numbers)
            name, own_lm, _ = system.partition(",")  # "CapDec, tuned GPT-2" is a row of another page
            row = rf"\| {name}{', [^|]*' if own_lm else '†?'} \| {re.escape(cells)} \|"
            assert re.search(row, own if own_lm else tables[command]), (command, system)


def test_published_numbers_are_those_of_reproduce() -> None:
    papers, files = read_papers()
    for name, paper in papers.items():
        text = (ROOT / "docs" / "reproduce" / f"{paper.page}.md").read_text(encoding="utf-8")
        numbers = {float(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])", text.replace("%", ""))}
        for row in paper.rows.values():
            for metric, value in row.published.items():
                scales = (1, 100, 1000)  # as papers print them
                assert any(round(value * scale, 6) in numbers for scale in scales), (name, metric, value)
        assert f"prefixcap reproduce {name}" in text
        for file in Walk(paper, files, Path("runs")).files():
            assert file in text, (name, file)


def test_files_of_github_and_of_citation_can_be_read() -> None:
    for file in [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]:
        assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict), file
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    steps = {job: [step.get("run", "") for step in described["steps"]] for job, described in workflow["jobs"].items()}
    assert "make test-all" in steps["tests"]
    assert "--resolution lowest-direct" in " ".join(steps["oldest"]) and ".ci/smoke" in steps["core"]
    assert workflow["jobs"]["tests"]["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12", "3.13"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    for work in (citation, *citation["references"]):
        assert {"title", "authors", "type"} <= set(work)
