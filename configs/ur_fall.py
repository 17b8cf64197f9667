"""ML-ECS on UR-Fall. Variants: ``ur_fall`` (= ``:cpu``), ``ur_fall:smoke``, ``ur_fall:paper``."""

from ml_collections import ConfigDict


def get_config(variant: str = "cpu") -> ConfigDict:
    """The experiment's configuration; every value with its unit or source."""
    config = ConfigDict()
    config.seed = 0  # of initialisation, batches and dropout

    config.method = ConfigDict()
    config.method.name = "ml_ecs"
    config.method.ccl = True  # False: w/o CCL, no volume contrast on devices
    config.method.mma = True  # False: w/o MMA, devices weigh the same
    config.method.se_ccl = True  # False: w/o SE-CCL, the server's LLM trains alone
    config.method.kt = True  # False: w/o knowledge transfer between LLM and SLM
    config.method.public = True  # False: w/o public data on devices, CCL's steps go to AMT
    config.method.broadcast = True  # False: w/o broadcast, devices keep their own LoRA
    config.method.fedmllm = ConfigDict()
    config.method.fedmllm.clause = "Disregard modality. "  # put before the instruction
    config.method.fedmllm.mu = 0.01  # of the proximal term (FedMLLM)
    config.method.fedmllm.missing_weight = -1.0  # mu_w; -1: 1 - |M_j| / |M|; 0.1 in FedMLLM's code
    config.method.fedmllm.server = "fedadagrad"  # fedadagrad (FedMLLM's default) | fedavg
    config.method.fedmllm.server_rate = 1e-3  # eta of FedAdagrad (FedMLLM)
    config.method.fedmllm.tau = 1e-3  # its damping; the accumulator begins at tau^2 (FedMLLM)
    config.method.fedilora = ConfigDict()
    config.method.fedilora.ranks = "24,16,8"  # of the devices, in turn
    config.method.fedilora.edit_below = 0.95  # cosine; layers less alike are edited (FediLoRA)
    config.method.co_plms = ConfigDict()
    config.method.co_plms.proxy = "gpt2-1x48"  # backbone of the distilled proxy model

    config.data = ConfigDict()
    config.data.name = "ur_fall"
    config.data.source = "auto"  # auto | real | simulated
    config.data.split = "frame"  # frame (paper; neighbouring frames leak) | sequence (leak-free)
    config.data.acce = "sample"  # sample: 3 axes at the nearest time | window: causal last second
    config.data.rgb = "frames"  # frames | path of a precomputed feature file
    config.data.rgb_size = 32  # pixels a side
    config.data.depth = "features"  # features: 8 published shape features | image
    config.data.manifest = ""  # for data.name=table
    config.data.simulated_seed = 0
    config.data.simulated_sequences = 70  # recordings, as many as the real set

    config.partition = ConfigDict()
    config.partition.num_clients = 3  # devices (ML-ECS, Table 1)
    config.partition.rho = 0.8  # probability that a device has a modality (ML-ECS, Table 2)
    config.partition.seed = 0  # of who owns what; apart from config.seed
    config.partition.mask_schedule = "static"  # static | per_round | per_sample
    config.partition.mask_draw = "bernoulli"  # bernoulli (paper) | stratified
    config.partition.labelled = 0  # labelled training samples per device; 0: all it has
    config.partition.public_labels = True  # devices hold the labels of the public data (paper)
    config.partition.server_labelled = 1.0  # share of the public data that has labels at all

    config.model = ConfigDict()
    config.model.slm = "gpt2-2x64"  # layers x width, 4 heads; the devices' and server's SLM
    config.model.llm = "gptj-3x128"  # the server's LLM
    config.model.backbone_seed = 0  # of the frozen backbones' random weights
    config.model.latent = 64  # width of modality latents and fused representation (release)
    config.model.encoder_hidden = 128  # width (release)
    config.model.connector_hidden = 256  # width (release)
    config.model.soft_tokens = 16  # soft-prompt vectors before the text (release)
    config.model.prompt_dropout = 0.1  # share (release)
    config.model.prompt = "Class?"  # instruction; one token per byte, so short is fast
    config.model.cohorts = ""  # devices of another structure, e.g. "0,2=encoder_hidden:256"
    config.model.dtype = "float32"  # of loaded backbones (hf:): float32 | bfloat16

    config.lora = ConfigDict()
    config.lora.rank = 8  # (paper)
    config.lora.alpha = 16.0  # (release)
    config.lora.dropout = 0.0  # share; .05 in the release
    config.lora.slm_targets = ""  # comma-separated path patterns; empty: PEFT's of the family
    config.lora.llm_targets = ""

    config.ccl = ConfigDict()
    config.ccl.weight = 1.0
    config.ccl.temperature = 0.07  # initial value of GRAM's learnable one
    config.ccl.label_smoothing = 0.0  # share
    config.ccl.negatives = "all"  # all (paper) | other_class
    config.ccl.train_extractor = True  # the release freezes it; costs about .02 F1

    config.amt = ConfigDict()
    config.amt.train_connector = False  # frozen (paper)

    config.kt = ConfigDict()
    config.kt.weight = 0.2  # at 1 the transfer costs the server .006–.015 F1
    config.kt.pooling = "topk_rest"  # topk_rest | adaptive_avg | sorted_topk
    config.kt.k = 32  # tokens kept, or bins
    config.kt.temperature = 1.0

    config.plus = ConfigDict()  # ML-ECS+, our own variant; ML-ECS reads none of these
    config.plus.distil = 1.0  # weight of the teacher on devices
    config.plus.devices_share = 0.5  # of the teacher where the server has all labels, else more
    config.plus.server_distil = 1.0  # weight of the devices' beliefs where the LLM has no label
    config.plus.weighting = "modality"  # uniform | modality | confidence, of devices' beliefs
    config.plus.align = True  # mean of the devices' beliefs with the class frequencies
    config.plus.public_share = 0.5  # of a device's batches
    config.plus.lora = True  # average and broadcast LoRA too
    config.plus.encoders = False  # average encoders over the owners of their modality too
    config.plus.volume = 0.0  # weight of the volume loss on devices; ccl.negatives is its rule
    config.plus.tokens = 4  # asked about at each position of a caption; classes: all of them

    config.train = ConfigDict()
    config.train.rounds = 10
    config.train.ccl_steps = 40  # batches per round on public data, each device
    config.train.amt_steps = 40  # batches per round on private data, each device
    config.train.server_steps = 100  # batches per round of SE-CCL
    config.train.batch_size = 16  # samples
    config.train.learning_rate = 1e-3  # of every group, first round
    config.train.final_rate_fraction = 0.1  # of the first round's rate, in the last round
    config.train.clip = 1.0  # global gradient norm (release)

    config.clients = ConfigDict()
    config.clients.backend = "scan"  # loop | scan | shard_map
    config.clients.chunk = 1  # devices under one vmap: 1–2 on CPU, more on an accelerator

    config.channel = ConfigDict()
    config.channel.uplink = "none"  # none | bf16 | int8 | topk, of ml_ecs' uploads
    config.channel.topk_fraction = 0.1  # of a tensor's entries

    config.aggregation = ConfigDict()  # of ml_ecs' uploads; mean without clip is the paper's
    config.aggregation.rule = "mean"  # mean | median | trimmed_mean | krum
    config.aggregation.clip = 0.0  # longest update, in multiples of the median one; 0: any
    config.aggregation.trim = 0.2  # share of the devices left out at each end by trimmed_mean
    config.aggregation.liars = 1  # devices that krum stands up to
    config.aggregation.selected = 1  # devices that krum averages; more than 1: multi-Krum

    config.privacy = ConfigDict()
    config.privacy.clip = 0.0  # L2 length of a device's update; 0: no privacy
    config.privacy.noise = 1.0  # standard deviation of the noise, in multiples of clip
    config.privacy.delta = 1e-5  # of the (epsilon, delta) that is told

    config.topology = ConfigDict()
    # Accelerators of the cloud, where there are several; 0: all, which then serve devices in turn.
    config.topology.cloud_devices = 1

    config.eval = ConfigDict()
    config.eval.ceiling_steps = 0  # of offline single-modality classifiers; 0: none, 1280 settles

    if variant == "smoke":
        config.train.rounds = 2
        config.train.ccl_steps = config.train.amt_steps = 10
        config.train.server_steps = 10
        config.data.simulated_sequences = 20
    elif variant == "paper":
        _literal(config)
    elif variant != "cpu":
        raise ValueError(f"unknown variant '{variant}'; use smoke, cpu or paper")
    return config


def _literal(config: ConfigDict) -> None:
    """The paper's and the release's own values, where they give one."""
    config.model.slm = "gpt2-large"  # shape of MiniLLM-gpt2-760M
    config.model.llm = "gpt-j-6b"
    config.model.dtype = "bfloat16"  # where they are loaded; the shapes have it anyway
    config.model.prompt = (
        "Sensor readings are given above. Classify the person's state as 0, 1 or 2 and answer "
        "with the label alone. Answer: ")
    config.lora.dropout = 0.05
    config.lora.slm_targets = "c_attn$,c_proj$"  # 4,055,040 parameters (the paper's share)
    config.ccl.train_extractor = False
    config.kt.weight = 1.0
    config.train.rounds = 5
    config.train.ccl_steps = config.train.amt_steps = config.train.server_steps = 10
    config.train.batch_size = 4
    config.train.learning_rate = 2e-4
    config.train.final_rate_fraction = 1.0
    config.clients.chunk = 8
    config.clients.backend = "shard_map"  # devices spread over the accelerators there are
    config.topology.cloud_devices = 0  # and the cloud's models split over all of them, in turn
