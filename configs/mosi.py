"""Mega-CE² on MOSI. Variants: ``mosi`` (= ``:cpu``), ``mosi:smoke``, ``mosi:paper``."""

from ml_collections import ConfigDict


def get_config(variant: str = "cpu") -> ConfigDict:
    """The experiment's configuration; every value with its unit or source."""
    config = ConfigDict()
    config.seed = 0  # of initialisation, batches and dropout

    config.method = ConfigDict()
    config.method.name = "mega_ce2"
    config.method.mode = "async"  # async: every arrival makes a version (Eq. 4) | sync
    config.method.staleness_exponent = 0.0  # a of (1 + staleness)^-a; 0: Eq. 4 as printed

    config.data = ConfigDict()
    config.data.name = "mosi"
    config.data.source = "auto"  # auto | real | simulated
    config.data.form = "auto"  # utterance, or a prepared file: mult, mult_noalign, mmsa_aligned …
    config.data.split = "canonical"  # canonical | segment (paper) | video, both random 70/10/20
    config.data.window = 0  # utterances of context in a sequence; 0: the dataset's, 8
    config.data.simulated_seed = 0
    config.data.simulated_segments = 600

    config.partition = ConfigDict()
    config.partition.edges = 3
    config.partition.ends = 2  # of each edge
    config.partition.alpha = 0.5  # Dirichlet concentration over seven sentiment bins
    config.partition.minimum = 16  # segments of an end, at least
    config.partition.seed = 0  # of random splits and who owns what; apart from config.seed

    config.model = ConfigDict()
    config.model.preset = "small"  # default | mosi | mosei (published) | small | paper
    config.model.modalities = "text,audio,vision"  # fewer: the unimodal ablations
    config.model.targets = "text,audio,vision"  # one: the single-target ablations

    config.train = ConfigDict()
    config.train.rounds = 15  # synchronous ones; an asynchronous run gets their simulated time
    config.train.local_epochs = 1  # passes of an end over its segments before it reports
    config.train.batch_size = 16  # segments
    config.train.learning_rate = 1e-3  # of Adam (MulT)
    config.train.final_rate_fraction = 0.1  # of the first rate, at the end
    config.train.clip = 0.8  # global gradient norm (MulT, MOSI)

    config.adapter = ConfigDict()
    config.adapter.share = True  # one block at all six places (the size of Mega-CE²'s Table 5)
    config.adapter.epochs = 5  # passes of an edge over its segments
    config.adapter.batch_size = 32  # segments
    config.adapter.learning_rate = 1e-3

    config.clock = ConfigDict()
    config.clock.step_seconds = 0.05  # of a training step of one end at speed 1
    config.clock.speeds = "1,1,0.25"  # of the edges; one is four times slower
    config.clock.links = "realistic"  # realistic | paper
    config.clock.jitter = 0.1  # standard deviation of the logarithm of training times
    config.clock.seed = 0

    config.clients = ConfigDict()
    config.clients.backend = "scan"  # loop | scan | shard_map
    config.clients.chunk = 1  # ends under one vmap: 1–2 on CPU, more on an accelerator

    config.topology = ConfigDict()
    config.topology.cloud_devices = 1  # accelerators of the cloud, where there are several

    config.eval = ConfigDict()
    config.eval.every = 3  # versions between evaluations

    if variant == "smoke":
        config.train.rounds = 2
        config.adapter.epochs = 1
        config.data.simulated_segments = 240
    elif variant == "paper":
        config.model.preset = "paper"  # 300 wide, 3 layers: the size behind Table 5
        config.data.split = "segment"
        config.data.simulated_segments = 2199
        config.train.rounds = 100
        config.train.final_rate_fraction = 1.0
        config.clients.chunk = 6
    elif variant != "cpu":
        raise ValueError(f"unknown variant '{variant}'; use smoke, cpu or paper")
    return config
