"""Run by the peers' Python: python trl_train.py TASK.json FOUND.json

Trains a Hugging Face directory on rows that are given, in the order given, with Trainer or SFTTrainer, and writes
when each step ended and the loss of each step. TASK: trainer (Trainer or SFTTrainer), model, inputs and labels (.npy of
(rows, tokens), labels -100 where nothing counts), batch, steps, learning_rate, bf16, compile, threads, output.
"""

import json
import sys
import time

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments


class Watch(TrainerCallback):
    def __init__(self):
        self.times, self.losses = [], []

    def on_step_begin(self, args, state, control, **more):
        if not self.times:
            self.times.append(time.perf_counter())

    def on_step_end(self, args, state, control, **more):
        self.times.append(time.perf_counter())

    def on_log(self, args, state, control, logs=None, **more):
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def main(given, found):
    with open(given) as file:
        task = json.load(file)
    torch.set_num_threads(task["threads"])
    inputs, labels = np.load(task["inputs"]), np.load(task["labels"])
    rows = Dataset.from_dict(
        {"input_ids": inputs.tolist(), "labels": labels.tolist(), "attention_mask": np.ones_like(inputs).tolist()}
    ).with_format("torch")
    options = {
        "output_dir": task["output"],
        "per_device_train_batch_size": task["batch"],
        "max_steps": task["steps"],
        "learning_rate": task["learning_rate"],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.01,
        "adam_beta2": 0.98,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "bf16": task["bf16"],
        "torch_compile": task["compile"],
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 7,
        "disable_tqdm": True,
    }
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    watch = Watch()
    if task["trainer"] == "Trainer":
        base, arguments, more = Trainer, TrainingArguments(**options), {}
    else:
        from trl import SFTConfig, SFTTrainer

        # The rows are packed already, without padding, as its packing strategy "wrapped" makes them.
        options |= {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
        base, arguments = SFTTrainer, SFTConfig(gradient_checkpointing=False, **options)
        more = {"processing_class": AutoTokenizer.from_pretrained(task["model"])}

    class InOrder(base):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset)

    InOrder(model=model, args=arguments, train_dataset=rows, callbacks=[watch], **more).train()
    seconds = [after - before for before, after in zip(watch.times, watch.times[1:], strict=False)]
    with open(found, "w") as file:
        json.dump({"seconds": seconds, "losses": watch.losses}, file)


if __name__ == "__main__":
    main(*sys.argv[1:3])
