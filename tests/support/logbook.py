"""A logger of another make, as W&B's or MLflow's are for Lightning."""

from pathlib import Path

from pytorch_lightning.loggers.logger import Logger


class Logbook(Logger):
    """Appends the names and steps of all metrics to a file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)

    @property
    def name(self) -> str:
        return "logbook"

    @property
    def version(self) -> str:
        return "7"

    @property
    def save_dir(self) -> str:
        return str(self.path.parent / "elsewhere")

    def log_metrics(self, metrics, step=None) -> None:
        assert all(isinstance(value, (int, float)) for value in metrics.values())
        with self.path.open("a") as file:
            file.writelines(f"{step} {name}\n" for name in metrics)

    def log_hyperparams(self, *args, **kwargs) -> None:
        pass
