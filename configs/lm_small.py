"""A small decoder trained on text. Variants: ``lm_small`` (= ``:cpu``) and ``:smoke``."""

from ml_collections import ConfigDict


def get_config(variant: str = "cpu") -> ConfigDict:
    """The pretraining's configuration; every value with its unit."""
    config = ConfigDict()
    config.seed = 0  # of weights, batches and what is held out

    config.data = ConfigDict()
    # Whose public training text is read: a captioning config, options behind it, for instance
    # "vast --config.partition.seed=1". Nothing private and nothing held out of its split is read.
    config.data.experiment = "vast"
    # Text of your own instead: comma-separated files or patterns; of a .json file every string of
    # three words or more. Captions that a run tests on must not be in it; the run says if they are.
    config.data.files = ""
    config.data.held_out = 0.02  # share of the documents, never trained on

    config.tokenizer = ConfigDict()
    config.tokenizer.directory = ""  # of a tokenizer's or GPT-2's files; empty: a BPE is trained
    config.tokenizer.vocabulary = 4096  # tokens of the trained BPE, at most

    config.model = ConfigDict()
    config.model.name = "gpt2-6x256"  # layers x width; gpt2, gptj, llama, qwen2 or qwen3
    config.model.positions = 256  # longest text it will ever take (learned positions)

    config.train = ConfigDict()
    config.train.steps = 600  # batches
    config.train.batch_size = 16  # windows
    config.train.length = 64  # tokens a window
    config.train.learning_rate = 2e-3  # after warm-up; falls to a tenth along a cosine
    config.train.warmup = 50  # batches
    config.train.weight_decay = 0.05  # of matrices
    config.train.clip = 1.0  # global gradient norm
    config.train.check_every = 50  # batches between held-out losses, and checkpoints

    if variant == "smoke":
        config.model.name = "gpt2-1x32"
        config.tokenizer.vocabulary = 300
        config.train.steps = 20
        config.train.batch_size = 4
        config.train.length = 32
        config.train.warmup = 5
        config.train.check_every = 10
    elif variant != "cpu":
        raise ValueError(f"unknown variant '{variant}'; use smoke or cpu")
    return config
