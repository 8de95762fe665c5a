"""IP-Adapters and LoRA weights loaded into a pipeline act in its adapter as in its own loop."""

import pytest
import torch

import tiny_pipelines as tiny
from glass_flows import Sampler
from glass_flows.diffusers import GlassScheduler, LatentNoise, Schedule, compile_table
from glass_flows.diffusers.families import family_of
from glass_flows.diffusers.scheduler import config_of
from glass_flows.execute import run


def both(pipe, name, loop_only=None, **extra):
    """Latents by our executor through the adapter, and by the pipeline's own loop."""
    given = {**tiny.CALL[name], **extra}
    prompts = [given.pop("prompt")] * 2
    adapter = family_of(pipe)(pipe, **given)
    own = pipe.scheduler
    schedule = Schedule.of(config_of(own))
    table = compile_table(schedule, Sampler(2, 2, 0.4), 2, **adapter.grid(2))
    noise = torch.randn(2, *adapter.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        ours = run(table, adapter.denoiser(prompts, schedule), noise, LatentNoise(noise))
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=2)
    theirs = pipe(
        prompt=prompts, latents=noise, num_inference_steps=2, output_type="latent", **given,
        **(loop_only or {}),
    ).images  # fmt: skip
    pipe.scheduler = own
    return ours, theirs


def random(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_an_ip_adapter_of_a_unet(name):
    pipe = tiny.build(name)
    plain, _ = both(pipe, name)
    width, unet = pipe.unet.config.cross_attention_dim, pipe.unet
    attention = {}
    layers = [n for n in unet.attn_processors if n.endswith("attn2.processor")]
    for i, layer in enumerate(layers):
        size = unet.get_submodule(layer.removesuffix(".processor")).to_k.weight.shape[0]
        attention[f"{2 * i + 1}.to_k_ip.weight"] = random((size, width), i)
        attention[f"{2 * i + 1}.to_v_ip.weight"] = random((size, width), 50 + i)
    projection = {"proj.weight": random((4 * width, 16)), "proj.bias": random((4 * width,))}
    projection |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    unet._load_ip_adapter_weights(
        [{"image_proj": projection, "ip_adapter": attention}], low_cpu_mem_usage=False
    )
    ours, theirs = both(pipe, name, ip_adapter_image_embeds=[random((2, 1, 16), 9)])
    assert torch.equal(ours, theirs)
    assert not torch.allclose(ours, plain)


def test_an_ip_adapter_of_flux():
    pipe = tiny.build("flux")
    plain, _ = both(pipe, "flux")
    width, inner = 32, pipe.transformer.inner_dim
    attention = {}
    for i in range(pipe.transformer.config.num_layers):
        for kind in ("k", "v"):
            attention[f"{i}.to_{kind}_ip.weight"] = random((inner, width), i)
            attention[f"{i}.to_{kind}_ip.bias"] = random((inner,), i)
    projection = {"proj.weight": random((4 * width, 16)), "proj.bias": random((4 * width,))}
    projection |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    pipe.transformer._load_ip_adapter_weights(
        [{"image_proj": projection, "ip_adapter": attention}], low_cpu_mem_usage=False
    )
    image = [random((1, 1, 16), 9)]
    blank = {"negative_ip_adapter_image_embeds": image}  # asked for, and not used without true CFG
    ours, theirs = both(pipe, "flux", loop_only=blank, ip_adapter_image_embeds=image)
    assert torch.equal(ours, theirs)
    assert not torch.allclose(ours, plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("flux", marks=pytest.mark.slow), "sdxl"])
def test_lora_weights(name, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_k"])
    source = tiny.build(name)
    tiny.network(source).add_adapter(config)
    layers = peft.get_peft_model_state_dict(tiny.network(source))
    kind = "unet_lora_layers" if name == "sdxl" else "transformer_lora_layers"
    source.save_lora_weights(tmp_path, **{kind: layers})
    pipe = tiny.build(name)
    plain, _ = both(pipe, name)
    pipe.load_lora_weights(tmp_path)
    ours, theirs = both(pipe, name)
    assert torch.equal(ours, theirs)
    assert not torch.allclose(ours, plain)
