"""What draws prompts, and whether their contexts are encoded beforehand."""

from collections.abc import Sequence

from accelerate import Accelerator

from hn.build.processes import build_workers
from hn.config import Config
from hn.data.cache.contexts import Contexts
from hn.data.cache.index import Index
from hn.data.tally import Tally
from hn.data.words.captions import load_template
from hn.data.words.prompts import EXAMPLES, Prompts
from hn.diffusion.base_model import BaseModel
from hn.diffusion.conditions.text_encoder import TextEncoder, TextPair
from hn.errors import OptionError

MIB = 2**20


def build_prompts(config: Config, index: Index) -> Prompts:
    """What draws the prompts of the pictures of an index."""
    template = load_template(config.data.template)
    return Prompts.of(index.words, template, config.network.name, config.data, config.training.seed)


def encode_prompts(
    config: Config,
    accelerator: Accelerator,
    prompts: Prompts,
    contexts: Contexts,
    base: BaseModel,
    tally: Tally | None = None,
) -> bool:
    """Encode all prompts, if they are few enough; whether the text encoder has done its work.

    What is odd with them is said, and goes into the `tally`.

    What is decided follows from the settings and the captions alone, not from the memory that is
    free: a resumed run must draw the same prompts. Raises `OptionError` if the variants that are
    asked for do not fit.
    """
    encoder = base.text_encoder
    limit = int(config.data.text_cache_gib * 2**30) // encoder.context_nbytes
    every = prompts.all(limit)
    remarks = encoder.remarks(every or prompts.examples())
    if remarks and tally is not None:
        tally.keep("prompts", "remarks", "to be known of the prompts", remarks)
    if remarks and len(prompts) > EXAMPLES and every is None:
        remarks.append(f"that is of {EXAMPLES} pictures looked at, of {len(prompts)}")
    for remark in [*remarks, _decided(config, prompts, every, encoder, limit)]:
        accelerator.print(remark)
    if every is None:
        return False
    contexts.cache(every, build_workers(accelerator))
    return True


def tell_cut(
    prompts: Prompts, names: Sequence[str], encoder: TextEncoder | TextPair, tally: Tally
) -> None:
    """Which pictures have a prompt that is cut, of the first `EXAMPLES`, the longest first."""
    if encoder.syntax != "plain":
        return
    excess = {}
    for row in range(min(len(prompts), EXAMPLES)):
        excess[names[row]] = max(map(encoder.excess_tokens, prompts.plain(row)))
    cut = sorted((name for name in excess if excess[name]), key=lambda name: -excess[name])
    tally.add("prompts", "cut", f"prompts cut at {encoder.length} tokens", cut)


def _decided(
    config: Config,
    prompts: Prompts,
    every: list[str] | None,
    encoder: TextEncoder | TextPair,
    limit: int,
) -> str:
    data, each = config.data, encoder.context_nbytes
    if every is not None:
        taken = len(every) * each / MIB
        return f"text: {len(every)} prompts encoded once ({taken:.0f} MiB); text encoder let go"
    stays = f"the text encoder stays ({encoder.nbytes / MIB:.0f} MiB)"
    if data.prompt_variants:
        needed = len(prompts) * data.prompt_variants * each / 2**30
        raise OptionError(
            f"prompt_variants {data.prompt_variants} of {len(prompts)} pictures take {needed:.2f} "
            f"GiB, more than text_cache_gib {data.text_cache_gib}: give at most "
            f"{limit // len(prompts)} or a larger text_cache_gib; with 0 {stays}"
        )
    if data.shuffle_tags or data.tag_dropout:
        most = limit // len(prompts)
        instead = f"; up to --prompt_variants {most} fit text_cache_gib instead" if most else ""
        return f"text: prompts are drawn anew for every sample, so {stays}{instead}"
    return f"text: more than {limit} prompts do not fit text_cache_gib, so {stays}"
