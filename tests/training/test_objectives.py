"""Training objectives, by their loss and its gradients, beside captions that are read one at a time."""

import runpy

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.errors import InputError
from prefixcap.training import CaptionTraining, linear_warmup_and_decay
from prefixcap.training.objectives import OBJECTIVES, Objective, SelfCritical, build_objective
from prefixcap.training.self_critical import SelfCriticalTraining
from tests.conftest import ROOT, small_captioner
from tests.training.test_training import make_store


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CaptionData:
    return CaptionData(make_store(tmp_path_factory.mktemp("objectives") / "store"), small_captioner(), batch_size=5)


def gradients(captioner: Captioner) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in captioner.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(
    ("name", "options", "smoothing"),
    [
        ("cross_entropy", {}, 0.0),
        ("cross_entropy", {"fused": False}, 0.0),
        ("label_smoothing", {"smoothing": 0.0}, 0.0),
        ("label_smoothing", {"smoothing": 0.3}, 0.3),
    ],
)
def test_a_step_has_the_gradients_of_torchs_cross_entropy(
    name: str, options: dict[str, float], smoothing: float, data: CaptionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also label smoothing, which is the documents' example of an objective of one's own."""
    monkeypatch.setitem(OBJECTIVES, "label_smoothing", Objective)  # taken out again after the test
    runpy.run_path(str(ROOT / "docs" / "examples" / "add_objective.py"))
    captioner = small_captioner("full", "mlp").eval()
    objective = build_objective(name, captioner, data, **options)
    training = CaptionTraining(captioner, data.val_split, objective=objective)
    training.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    batch = next(iter(data.train_dataloader()))
    step = training.training_step(batch, 0)
    step["loss"].backward()
    found = {weight: gradient.clone() for weight, gradient in gradients(captioner).items()}

    captioner.zero_grad()
    model, total, count = captioner.language_model.model, torch.zeros(()), 0
    for place, tokens in enumerate(data.train_tokens[torch.tensor(batch.caption_rows).numpy()]):
        targets = torch.tensor(list(map(int, tokens)))
        prefix = captioner.prefix(batch.embeddings[place : place + 1])
        words = model.get_input_embeddings()(targets[None, :-1])
        logits = model(inputs_embeds=torch.cat((prefix, words), dim=1)).logits[0, prefix.shape[1] - 1 :]
        total = total + F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
        count += len(targets)
    (total / count).backward()
    torch.testing.assert_close(step["loss"], total / count)
    torch.testing.assert_close(step["train_loss"], step["loss"].detach())
    expected = gradients(captioner)
    assert found.keys() == expected.keys() and len(found) > 10
    for weight, gradient in expected.items():
        torch.testing.assert_close(found[weight], gradient, rtol=1e-4, atol=1e-6)


def test_objectives_that_do_not_exist_or_take_no_such_option_are_named(data: CaptionData) -> None:
    captioner = small_captioner()
    with pytest.raises(InputError, match="unknown objective 'rl': choose one of cross_entropy, scst"):
        build_objective("rl", captioner, data)
    with pytest.raises(InputError, match=r"objective 'cross_entropy': .*'smoothing'; its options: fused"):
        build_objective("cross_entropy", captioner, data, smoothing=0.1)
    with pytest.raises(InputError, match="fused must be true or false, not 1"):
        build_objective("cross_entropy", captioner, data, fused=1)
    with pytest.raises(InputError, match="unknown reward 'bleu': choose one of cider, clip"):
        build_objective("scst", captioner, data, reward="bleu")
    with pytest.raises(InputError, match="reward 'cider' needs the training data"):
        SelfCritical(captioner)
    with pytest.raises(InputError, match="captions must be between 1 and"):
        build_objective("scst", captioner, data, draws=0)


def test_old_names_warn(data: CaptionData) -> None:
    with pytest.warns(FutureWarning, match=r"called CaptionTraining\(\.\.\., objective=SelfCritical"):
        training = SelfCriticalTraining(small_captioner(), data.val_split, lambda *_: None, 3, learning_rate=0.5)  # type: ignore[arg-type,return-value]
    assert isinstance(training.objective, SelfCritical) and training.objective.draws == 3
    assert training.learning_rate == 0.5
    with pytest.warns(FutureWarning, match=r"prefixcap\.training\.optimizer\.linear_schedule"):
        assert [linear_warmup_and_decay(step, 2, 4) for step in range(6)] == [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    with pytest.warns(FutureWarning, match=r"prefixcap\.training\.module"):
        from prefixcap.training.cross_entropy import CaptionTraining as Old
    assert Old is CaptionTraining
