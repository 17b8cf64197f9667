"""ML-ECS on omni-modal captions. Variants: ``vast`` (= ``:cpu``), ``:smoke``, ``:paper``."""

from ml_collections import ConfigDict

from mlecs_jax.configs import ur_fall


def get_config(variant: str = "cpu") -> ConfigDict:
    """UR-Fall's settings with captions as data and target; every value with its unit or source."""
    config = ur_fall.get_config(variant)
    config.data.name = "vast"
    config.data.split = "sequence"  # whole videos are held out, the same for every node

    config.captions = ConfigDict()
    config.captions.corpora = "vast,msrvtt,audiocaps,youcook2:1000"  # NAME or NAME:CLIPS
    config.captions.annotations = ""  # a VAST-27M annotation file of your own, instead of corpora
    config.captions.features = ""  # folder of its clips' vectors, e.g. vision.npz by clip id
    config.captions.clips = 0  # drawn by a hash of their videos' names; 0: all
    config.captions.featuriser = "hashed-ngrams-v1"  # of texts that are inputs; or an encoder's dir
    config.captions.feature_width = 256  # numbers
    config.captions.simulated_clips = 1200  # where there are no real ones
    config.captions.vocabulary = 2048  # tokens, BPE of public training text; hf: brings its own
    config.captions.max_tokens = 24  # of a target; 90 % of the captions are shorter
    config.captions.val_rows = 64  # validation rows captioned after every round, per node
    config.captions.test_every = 0  # rounds between captions of all test rows; 0: the last only
    config.captions.shown = 20  # captions in samples.jsonl and the report
    config.captions.bertscore = ""  # directory of a BERT or RoBERTa encoder; empty: none
    config.captions.pretrain_steps = 600  # batches of a pretrained: backbone, once per data

    config.model.prompt = "Caption:"
    if variant == "cpu":
        config.model.slm = "pretrained:gpt2-2x128"  # on public training text, kept in the cache
        config.model.llm = "pretrained:gptj-4x160"
        config.method.co_plms.proxy = "pretrained:gpt2-1x48"  # as its tutors are
        config.model.soft_tokens = 8  # vectors
        config.lora.slm_targets = "c_attn$,c_proj$"  # as in the paper's count
        config.lora.llm_targets = "q_proj$,v_proj$,out_proj$,mlp_fc_out$"
        # Chosen on validation captions: these stop improving after some 150 batches a device at
        # 3e-3, and are a little worse at 1e-3 and 1e-2.
        config.train.learning_rate = 3e-3  # of every group, first round
        config.train.rounds = 6
        config.train.ccl_steps = config.train.amt_steps = 25  # batches
        config.train.server_steps = 40  # batches
    elif variant == "smoke":
        config.captions.corpora = "vast,msrvtt:100,audiocaps:100,youcook2:100"
        config.captions.simulated_clips = 200
        config.captions.vocabulary = 512
        config.captions.max_tokens = 16
        config.captions.val_rows = 8
        config.model.soft_tokens = 4
        config.model.slm, config.model.llm = "gpt2-1x32", "gptj-1x48"
    elif variant == "paper":
        _literal(config)
    return config


def _literal(config: ConfigDict) -> None:
    """The paper's own values, where it gives one."""
    config.captions.corpora = "vast"  # 120 clips, unless captions.annotations has more
    config.captions.clips = 9680  # as many as the paper takes of VAST-27M
    config.captions.max_tokens = 70  # (GRAM's configuration of VAST)
    config.captions.feature_width = 1024
    config.captions.val_rows = 200
    config.data.split = "frame"  # clips at random
    config.model.latent = 256  # width of the fused vectors that travel (release)
    config.model.prompt = "Describe the clip from the features given above. Caption:"
