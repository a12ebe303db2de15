"""CLIP and OpenCLIP as classifiers: the cosine of an image with each class's prompts, as a method of `scored`."""

import logging
from collections.abc import Sequence
from functools import partial

from diffusion import models, settings
from diffusion.baselines import runner
from diffusion.datasets.prompts import PromptTable
from diffusion.models import clip
from diffusion.utils.files import fingerprint

log = logging.getLogger(__name__)


def scorer(model: settings.Contrastive, table: PromptTable, ending="", where="--prompt_path or --template") -> runner.Scorer:
    """What a runner asks of a contrastive model; reads no weights. ending: of the run folder's name; where: flags of the prompts.

    Raises ValueError for a model that is not known, or not there.
    """
    source = clip.find(model.model, model.version, model.model_path, model.pretrained)
    classes, names = sorted(set(table.classidx)), dict(zip(table.classidx, table.classnames, strict=True))
    described = f'{len(table.prompts)} of {len(classes)} classes, such as "{table.prompts[0]}"'
    hashes = {"prompts": fingerprint(table.prompts, table.classidx), "weights": source.identity()}
    return runner.Scorer(
        command="eval_clip",
        name=f"{model.model}_{model.version.replace('/', '_')}{ending}",
        settings=(model,),
        identity={"version": model.version, "score": "cosine"} | hashes,
        labels=classes,
        names=[names[label] for label in classes],
        about={"prompts": described, "weights": source.describe()},
        notices=("contrastive model: encoding one image counts as one evaluation", table.notice),
        load=partial(load, source, table, classes, where),
    )


def load(source: clip.ClipSource, table: PromptTable, classes: Sequence[int], where: str, device: str):
    """Loads the weights and embeds the classes: (transform, image [3,H,W] -> logits float32 [K]). where: flags of the prompts."""
    if notice := models.check_prompts(source, table.prompts, table.classidx, table.classnames, where, table.published):
        print(f"Note: {notice}", flush=True)
    network = source.load(device)
    log.info("Embedding %s prompts ...", f"{len(table.prompts):,}")
    embedded = class_embeddings(network.embed_texts(table.prompts), table.classidx, classes)
    return network.preprocess, lambda image: network.logits(network.embed_images(image[None]), embedded)[0].float().cpu()


def class_embeddings(rows, classidx: Sequence[int], classes: Sequence[int]):
    """Embeddings of prompts [N,D], each of length 1 -> of classes [K,D]: mean over a class's prompts, again of length 1."""
    import torch

    of_class = torch.tensor(classidx)
    means = torch.stack([rows[of_class == label].mean(0) for label in classes])
    return torch.nn.functional.normalize(means, dim=-1)
