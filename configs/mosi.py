"""Mega-CE² on MOSI. Variants: ``mosi`` (= ``:cpu``), ``mosi:smoke``, ``mosi:paper``."""

from ml_collections import ConfigDict


def get_config(variant: str = "cpu") -> ConfigDict:
    """The experiment's configuration; every value with its unit or source."""
    config = ConfigDict()
    config.seed = 0  # of initialisation, batches and dropout

    config.method = ConfigDict()
    config.method.name = "mega_ce2"
    config.method.mode = "async"  # async (Eq. 4) | sync: a barrier every round, FedAvg
    config.method.staleness_exponent = 0.0  # a of (1 + staleness)^-a; 0: Eq. 4 as printed

    config.data = ConfigDict()
    config.data.name = "mosi"
    config.data.source = "auto"  # auto | real | simulated
    config.data.form = "auto"  # of the real files: auto | utterance | mult | mmsa_aligned | …
    # heldout: validation on videos that the features have not seen | canonical: as published |
    # segment (paper; leaks) | video
    config.data.split = "heldout"
    config.data.window = 0  # utterances of a sequence; 0: the dataset's own (mosi 8, mosei 1)
    config.data.simulated_seed = 0
    config.data.simulated_segments = 600

    config.partition = ConfigDict()
    config.partition.edges = 3  # the paper gives no counts
    config.partition.ends = 2  # of every edge
    config.partition.alpha = 0.5  # Dirichlet over seven sentiment bins; small: unlike edges
    config.partition.minimum = 16  # segments every end has at least
    config.partition.seed = 0  # of who has what, and of random splits; apart from config.seed

    config.model = ConfigDict()
    config.model.preset = "small"  # small | default | mosi | mosei | paper (models/crossmodal.py)
    config.model.modalities = "text,audio,vision"  # fewer: unimodal ablations
    config.model.targets = "text,audio,vision"  # fewer: single-target ablations
    config.model.kernels = ""  # of the convolutions, 1 or 1,3,3; empty: the preset's
    config.model.residual_norm = False  # True: adds LN(Z) as Mega-CE²'s Eq. 2 is printed
    config.model.last_steps = 1  # averaged into a stream's summary (1 in MulT)

    config.train = ConfigDict()
    config.train.rounds = 15  # synchronous rounds; an asynchronous run has their simulated time
    config.train.local_epochs = 1  # passes of an end over its segments before it reports
    config.train.batch_size = 32  # segments
    config.train.learning_rate = 1e-3  # Adam (MulT)
    config.train.final_rate_fraction = 0.1  # of the first rate, when simulated time is over
    config.train.clip = 0.8  # global gradient norm (MulT)
    config.train.centralised_epochs = 0  # at most, on one machine; 0: as each was published
    config.train.recipe = "published"  # of models on one machine: published | tiers (like ours)

    config.cloud = ConfigDict()
    # Batches that the cloud trains every version on; 0: it aggregates and does nothing else.
    config.cloud.steps = 0
    config.cloud.share = 0.1  # of the training segments, which are then the cloud's and no end's

    config.adapter = ConfigDict()
    # block: beside the transformers | output: added to the prediction | bias: a constant, a control
    config.adapter.kind = "block"
    config.adapter.scope = "edge"  # edge | pooled: one tuned on all edges' segments, a control
    config.adapter.share = True  # one block beside every cross-modal transformer (paper's size)
    config.adapter.epochs = 5  # of an edge over its segments; the best on validation is kept
    config.adapter.batch_size = 32  # segments
    config.adapter.learning_rate = 1e-3

    config.clock = ConfigDict()
    config.clock.step_seconds = 0.2  # simulated, of one step of one end at speed 1
    config.clock.speeds = "1,1,0.25"  # of the edges; repeated where there are more
    config.clock.links = "realistic"  # of the edges: realistic, slow, paper; repeated as speeds are
    config.clock.jitter = 0.1  # standard deviation of the logarithm of training times
    config.clock.seed = 0

    config.clients = ConfigDict()
    config.clients.backend = "scan"  # loop | scan | shard_map
    config.clients.chunk = 1  # ends under one vmap: 1–2 on CPU, more on an accelerator

    config.topology = ConfigDict()
    config.topology.cloud_devices = 1  # accelerators of the cloud, where there are several

    config.eval = ConfigDict()
    config.eval.every = 1  # versions
    config.eval.latency = "cpu"  # smoke | cpu | paper: model and number of readings

    if variant == "smoke":
        config.train.rounds = 2
        config.adapter.epochs = 1
        config.train.centralised_epochs = 2
        config.eval.latency = "smoke"
        config.data.simulated_segments = 200
    elif variant == "paper":
        config.model.preset = "paper"  # d = 300, D = 3, the size behind Table 5
        config.data.split = "segment"  # 70/10/20 at random (§4)
        config.train.rounds = 40
        config.clients.chunk = 2
        config.eval.latency = "paper"
    elif variant != "cpu":
        raise ValueError(f"unknown variant '{variant}'; use smoke, cpu or paper")
    return config
