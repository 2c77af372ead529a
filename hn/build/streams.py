"""From a stream of pictures to batches."""

from accelerate import Accelerator

from hn.build.models import check_inpainting
from hn.build.processes import build_layout
from hn.config import Config
from hn.data.pictures.framing import Framing
from hn.data.streaming.batches import StreamedBatches
from hn.data.streaming.chunks import Decoder
from hn.data.streaming.samples import Samples
from hn.data.streaming.stream import Stream
from hn.data.words.captions import load_template
from hn.data.words.prompts import Prompts, check_template
from hn.diffusion.base_model import BaseModel


def build_stream(config: Config, accelerator: Accelerator) -> Stream:
    """The HF dataset as this process reads it, its first rows read."""
    check_template(load_template(config.data.template), config.data)
    stream = Stream.of(
        config.data,
        config.training.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    accelerator.print(stream.summary)
    return stream


def build_streamed_batches(
    config: Config, accelerator: Accelerator, stream: Stream, base: BaseModel, framing: Framing
) -> StreamedBatches:
    """The batches over it; the autoencoder and the text encoder are needed to the end."""
    data, seed = config.data, config.training.seed
    prompts = Prompts([], load_template(data.template), config.network.name, data, seed)
    examples = [text for each in stream.first_captions for text in prompts.plain_of(each)]
    for remark in base.text_encoder.remarks(examples):
        accelerator.print(f"of its first rows, {remark}")
    check_inpainting(config, inpainting=base.inpainting)
    samples = Samples(framing, data, seed, downscaling=base.downscaling, inpainting=base.inpainting)
    decoder = Decoder(stream, samples, prompts, build_layout(config, accelerator), seed)
    return StreamedBatches(decoder, base, data, seed, stream.digest)
