"""The loader in the frameworks that train: with the real ones, where they are installed (`pip install 'qflow[frameworks]'`)."""

import glob
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest

import qflow as qf

torch = pytest.importorskip("torch")


def make(number: int) -> Any:
    return torch.full((2,), float(number))


def loader(collate: Any = torch.stack) -> Any:
    flow = qf.source(range(20), shuffle=True) | qf.process(n=2)(make) | qf.pack(2) | qf.process(collate)
    return qf.train.Loader(flow, seed=0)


def numbers(epoch: int) -> list[list[int]]:
    """What an epoch gives."""
    return [batch[:, 0].int().tolist() for batch in loader().flow(engine="serial", seed=0, epoch=epoch)]


WHOLE = numbers(0) + numbers(1)


def test_lightning_trains_and_goes_on_in_the_midst_of_an_epoch(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint

    class Model(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.seen = torch.nn.Linear(2, 1), []  # type: ignore[var-annotated]

        def training_step(self, batch: Any, index: int) -> Any:
            self.seen.append(batch[:, 0].int().tolist())
            return self.layer(batch).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.0)

    class Stop(Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 14:
                raise RuntimeError("the machine is taken away")

    def fit(model: Any, *callbacks: Any, **options: Any) -> None:
        logging.getLogger("lightning").setLevel(logging.ERROR)
        quiet = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": bool(callbacks),
        }
        with loader() as batches, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lightning.Trainer(accelerator="cpu", max_epochs=2, callbacks=[*callbacks], **quiet).fit(model, batches, **options)

    first, second = Model(), Model()
    keep = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=13, save_top_k=-1)
    with pytest.raises(RuntimeError, match="the machine is taken away"):
        fit(first, keep, Stop())
    (checkpoint,) = glob.glob(str(tmp_path / "*.ckpt"))
    fit(second, ckpt_path=checkpoint)
    assert first.seen[:13] + second.seen == WHOLE


def test_accelerate_saves_and_loads_its_state(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator, model = accelerate.Accelerator(cpu=True), torch.nn.Linear(2, 1)
    with loader() as batches:
        model, _, prepared = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.0), batches)
        assert prepared is batches
        accelerator.register_for_checkpointing(batches)
        seen = []
        for batch in prepared:
            seen.append(batch[:, 0].int().tolist())
            if len(seen) == 4:
                break
        accelerator.save_state(str(tmp_path))
        list(prepared)
        accelerator.load_state(str(tmp_path))
        assert seen + [batch[:, 0].int().tolist() for batch in prepared] == numbers(0)


def as_inputs(rows: Any) -> Any:
    return {"x": torch.stack(rows)}


def test_the_trainer_of_transformers_takes_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    seen = []

    class Model(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, x: Any) -> Any:
            seen.append(x[:, 0].int().tolist())
            return {"loss": self.layer(x).sum()}

    with loader(as_inputs) as batches:

        class Trainer(transformers.Trainer):  # type: ignore[name-defined, misc]
            def get_train_dataloader(self) -> Any:
                return batches

        quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
        options = transformers.TrainingArguments(str(tmp_path), num_train_epochs=2, use_cpu=True, learning_rate=0.0, **quiet)
        Trainer(model=Model(), args=options).train()
    assert seen == WHOLE


def batches(kind: str) -> Any:
    if kind == "torchdata":
        stateful = pytest.importorskip("torchdata.stateful_dataloader")
        return stateful.StatefulDataLoader(list(range(6)), batch_size=2)
    return qf.train.Loader(qf.source(range(6)) | qf.pack(2) | torch.tensor, engine="serial")


@pytest.mark.parametrize("kind", ["torchdata", "qflow"])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_its_states_are_those_of_torchdatas_stateful_loader(kind: str) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader.stateful")
    every = [[0, 1], [2, 3], [4, 5]]
    for cut in range(4):
        first = batches(kind)
        assert isinstance(first, stateful.Stateful)
        taking = iter(first)
        assert [next(taking).tolist() for _ in range(cut)] == every[:cut]
        second = batches(kind)
        second.load_state_dict(first.state_dict())
        assert [batch.tolist() for batch in second] == every[cut:]
        assert [batch.tolist() for batch in second] == every  # the next epoch
        assert len(second) == 3
    state = second.state_dict()  # at the end of an epoch
    third = batches(kind)
    third.load_state_dict(state)
    assert [batch.tolist() for batch in third] == every
