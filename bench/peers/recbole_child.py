"""Runs inside RecBole's environment: `python recbole_child.py WORK DATASET SEED RESULT`. See recbole_sasrec."""

import json
import logging
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_logger, init_seed


def main(work: Path, dataset_name: str, seed: int, result: Path) -> None:
    """What RecBole's own quick start does, with the held-out items written down beside the scores."""
    options = {
        "train_neg_sample_args": None,
        "data_path": str(work / "data"),
        "checkpoint_dir": str(work / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "seed": seed,
        "show_progress": False,
        "use_gpu": False,
        "metric_decimal_place": 6,
    }
    sys.argv = sys.argv[:1]  # RecBole reads options there
    os.chdir(work)  # and puts its logs here
    config = Config(model="SASRec", dataset=dataset_name, config_dict=options)
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    logging.getLogger().info(config)
    dataset = create_dataset(config)
    train_data, valid_data, test_data = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, train_data._dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    began = time.monotonic()
    _, best_valid = trainer.fit(train_data, valid_data, saved=True, show_progress=False)
    seconds = time.monotonic() - began
    test = trainer.evaluate(test_data, load_best_model=True, show_progress=False)
    epochs = len(trainer.train_loss_dict)
    users, items = test_data._dataset.inter_feat["user_id"], test_data._dataset.inter_feat["item_id"]
    held_out = {
        str(dataset.id2token("user_id", int(user))): str(dataset.id2token("item_id", int(item)))
        for user, item in zip(users, items, strict=True)
    }
    document = {
        "recbole": version("recbole"),
        "torch": version("torch"),
        "seed": seed,
        "epochs": epochs,
        "secondsOfTraining": round(seconds, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trainingRows": len(train_data._dataset),
        "validation": {name: float(value) for name, value in trainer.best_valid_result.items()},
        "test": {name: float(value) for name, value in test.items()},
        "bestValidationMRR": float(best_valid),
        "heldOut": held_out,
    }
    result.write_text(json.dumps(document))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
