"""Finetuning methods: what each adds to TRL's SFTTrainer, found by name.

A method is a module with `make_trainer(settings, *, prefix_ids, kv_lambda, **trainer_arguments)`: `settings` are the
keyword arguments of its config class, the rest goes to its trainer class.
"""

METHODS = {
    "sft": "emeval.train.methods.sft:make_trainer",
    "interleave": "emeval.train.methods.sft:make_trainer",  # SFT on mixed rows; `train/plan.py` mixes them
    "treft": "emeval.train.methods.treft:make_trainer",
    "kl-train": "emeval.train.methods.kl:make_trainer",
    "kl-retain": "emeval.train.methods.kl:make_trainer",
}
