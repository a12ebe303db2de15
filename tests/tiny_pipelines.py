"""Random pipelines of every family, of diffusers' own classes and some thousand numbers each, as published ones are laid out."""

from pathlib import Path

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PRXPipeline,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.models.transformers.transformer_prx import PRXTransformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5GemmaConfig,
    T5GemmaModuleConfig,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

from diffusion.datasets.scenes import NOUNS
from diffusion.utils.paths import TINY_SD

WORDS = ["a", "photo", "of", "red", "t", "-", ".", ",", "type", "clothing", "ankle", *NOUNS[1:]]
N_TOKENS = len(WORDS) + 4


def clip_tokenizer():
    return CLIPTokenizer.from_pretrained(TINY_SD / "tokenizer")


def clip(cls, width: int, act="quick_gelu"):
    return cls(
        CLIPTextConfig(
            vocab_size=604,
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=24,
            hidden_act=act,
            bos_token_id=602,
            eos_token_id=603,
            pad_token_id=603,
        )
    )


def word_tokenizer(end: str | None = "</s>", begin: str | None = None, chat: str | None = None):
    """One token a word, with the marks for begin and end that T5 or Gemma have, or with a chat template."""
    turns = ["<|im_start|>", "<|im_end|>"] if chat else []
    marks = ["<pad>", "<unk>", *filter(None, (begin, end)), *turns]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*marks, *WORDS])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    sides = f"{begin + ' ' if begin else ''}$A{' ' + end if end else ''}"
    special = [(mark, marks.index(mark)) for mark in filter(None, (begin, end))]
    tokenizer.post_processor = processors.TemplateProcessing(single=sides, special_tokens=special)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": end, "bos_token": begin}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, additional_special_tokens=turns, chat_template=chat)


def t5(width: int):
    config = T5Config(
        vocab_size=N_TOKENS, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config)


def vae(channels: int, **config):
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        **config,
    )


def sdxl():
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=(2, 2),
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 24,
        use_linear_projection=True,
    )
    return StableDiffusionXLPipeline(
        vae=vae(4, scaling_factor=0.13025),
        text_encoder=clip(CLIPTextModel, 8),
        text_encoder_2=clip(CLIPTextModelWithProjection, 24, "gelu"),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1),
    )


def sd3(with_t5=True, dual=()):
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=40,
        caption_projection_dim=16,
        pooled_projection_dim=24,
        pos_embed_max_size=12,
        qk_norm="rms_norm" if dual else None,
        dual_attention_layers=dual,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip(CLIPTextModelWithProjection, 8),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(CLIPTextModelWithProjection, 16, "gelu"),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(40) if with_t5 else None,
        tokenizer_3=word_tokenizer() if with_t5 else None,
    )


def flux(dev=True):
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        guidance_embeds=dev,
        axes_dims_rope=(4, 4, 8),
    )
    moved = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0} if dev else {"shift": 1.0}
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**moved),
        vae=vae(4, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip(CLIPTextModel, 16),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(24),
        tokenizer_2=word_tokenizer(),
    )


def pixart(cls=PixArtAlphaPipeline):
    transformer = PixArtTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        attention_head_dim=12,  # sizes are told in three equal parts
        num_attention_heads=2,
        cross_attention_dim=24,
        caption_channels=24,
        use_additional_conditions=cls is PixArtAlphaPipeline,
    )
    return cls(
        tokenizer=word_tokenizer(),
        text_encoder=t5(24),
        vae=vae(4, scaling_factor=0.13025),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )


def sana():
    transformer = SanaTransformer2DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=24,
        sample_size=8,
        timestep_scale=0.5,
    )
    return SanaPipeline(
        tokenizer=word_tokenizer(end="<eos>", begin="<bos>"),
        text_encoder=Gemma2Model(Gemma2Config(**GEMMA)),
        vae=deep_vae(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"),
    )


GEMMA = {
    "vocab_size": N_TOKENS,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 12,
}


def deep_vae():
    return AutoencoderDC(
        latent_channels=8,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        scaling_factor=0.41407,
    )


class WholePRX(PRXPipeline):
    """As published: the text encoder's config is the whole T5Gemma's."""

    def save_pretrained(self, folder):
        super().save_pretrained(folder)
        encoder = T5GemmaModuleConfig.from_dict(self.text_encoder.config.to_dict())
        whole = T5GemmaConfig(encoder=encoder, decoder=encoder, vocab_size=N_TOKENS, dropout_rate=0.0)
        whole.save_pretrained(f"{folder}/text_encoder")
        index = Path(folder, "model_index.json")
        index.write_text(index.read_text().replace("WholePRX", "PRXPipeline"))


def prx(deep=False):
    transformer = PRXTransformer2DModel(
        in_channels=8 if deep else 4,
        patch_size=1 if deep else 2,
        context_in_dim=24,
        hidden_size=16,
        mlp_ratio=2.0,
        num_heads=2,
        depth=2,
        axes_dim=[4, 4],
    )
    layers = {"layer_types": ["full_attention"] * 2, "query_pre_attn_scalar": 12, "pad_token_id": 0, "dropout_rate": 0.0}
    encoder = T5GemmaModuleConfig(**GEMMA, **layers)
    whole = T5GemmaConfig(encoder=encoder, decoder=encoder, vocab_size=N_TOKENS, dropout_rate=0.0)
    tokenizer = word_tokenizer(end="<eos>", begin="<bos>")
    tokenizer.model_max_length = 256
    return WholePRX(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=T5GemmaEncoder(whole.encoder),
        tokenizer=tokenizer,
        vae=deep_vae() if deep else vae(4, scaling_factor=0.3611, shift_factor=0.1159),
        default_sample_size=16,
    )


def lumina2():
    transformer = Lumina2Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(300, 16, 16),
        cap_feat_dim=24,
    )
    return Lumina2Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=vae(4, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=Gemma2Model(Gemma2Config(**GEMMA)),
        tokenizer=word_tokenizer(end=None, begin="<bos>"),
    )


CHAT = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if not enable_thinking %}a type of
{% endif %}{% endif %}"""


def z_image():
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=24,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=24,
        axes_dims=[4, 4, 4],
        axes_lens=[600, 32, 32],
    )
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=Qwen3Model(Qwen3Config(**GEMMA)),
        tokenizer=word_tokenizer(end=None, chat=CHAT),
        transformer=transformer,
    )


def chroma():
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=t5(24),
        tokenizer=word_tokenizer(),
        transformer=transformer,
    )


def auraflow():
    transformer = AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=64,
    )
    encoder = UMT5Config(vocab_size=N_TOKENS, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return AuraFlowPipeline(
        tokenizer=word_tokenizer(),
        text_encoder=UMT5EncoderModel(encoder),
        vae=vae(4, scaling_factor=0.13025),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


BUILT = {
    "sdxl": sdxl,
    "sd3": sd3,
    "sd3-without-t5": lambda: sd3(with_t5=False),
    "sd3.5": lambda: sd3(dual=(0,)),
    "flux-dev": flux,
    "flux-schnell": lambda: flux(dev=False),
    "pixart-alpha": pixart,
    "pixart-sigma": lambda: pixart(PixArtSigmaPipeline),
    "sana": sana,
    "prx": prx,
    "prx-dc-ae": lambda: prx(deep=True),
    "lumina2": lumina2,
    "z-image": z_image,
    "chroma": chroma,
    "auraflow": auraflow,
}


def build(name: str, folder):
    """The pipeline, with weights that are not near zero anywhere, saved in the folder."""
    torch.manual_seed(0)
    pipeline = BUILT[name]()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
        for parameter in getattr(part, "parameters", list)():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.1)
            else:
                torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    pipeline.save_pretrained(folder)
    return pipeline
