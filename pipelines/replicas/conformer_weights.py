"""Random networks say one thing all the time. This adjusts theirs, once, so that any audio makes them say something.

Output layers are scaled by what reaches them for random features: tokens are equally likely in the mean, some more
outspoken than others, and the blank wins a given share of the frames. The prediction network answers each token
with the opposite of what calls for it in a frame: what was said is not called for again until the frames change.
"""

import torch
from torch import Tensor, nn

from pipelines.replicas.conformer_network import MEL_BINS, TOKENS, Encoder, Networks, Prediction

_FRAMES = 256  # of each random utterance
# How much of each feature stays from frame to frame (0.9: it changes within 100 ms, as in speech), and how much of it
# is loudness, common to all: from white noise to a voice.
_KINDS = ((0.0, 0.0), (0.0, 0.8), (0.5, 0.6), (0.8, 0.3), (0.9, 0.0), (0.9, 0.8))
_SPREAD = 3.0  # nats: the deviation of a common token's logit
_OUTSPOKEN = 0.4  # the deviation of the logarithm of a token's own spread
_CTC_BLANKS = 0.5  # share of frames
_RNNT_BLANKS = (0.5, 0.9)  # share of frames after the start of a sentence, from the first language to the last
_KEPT = 2.0  # the forget gate's bias, for a memory of some eight tokens: what longer ones sum up runs away
_OPEN, _SMALL = 4.0, 0.1  # an LSTM gate's bias; the scale of what else is in it
_JOINED = 0.3  # the deviation of the frames that are joined, about a mean of 1


def enliven(networks: Networks) -> None:
    """Adjust the weights in place; call it within `torch.no_grad()` and with torch seeded."""
    heard = _heard(networks.encoder)
    _enliven_ctc(networks, heard)
    _enliven_transducer(networks, heard)


def _heard(encoder: Encoder) -> Tensor:
    """The encoder's frames [N, width] for random features, each mel bin of which has mean 0 and deviation 1."""
    kinds = torch.tensor(_KINDS)
    persistence, loudness = kinds[:, 0, None], kinds[:, 1, None, None]
    noise = torch.randn(len(kinds), MEL_BINS + 1, _FRAMES)
    for frame in range(1, _FRAMES):
        fresh = (1 - persistence**2).sqrt() * noise[:, :, frame]
        noise[:, :, frame] = persistence * noise[:, :, frame - 1] + fresh
    noise = loudness * noise[:, -1:] + (1 - loudness**2).sqrt() * noise[:, :-1]
    noise = (noise - noise.mean(2, keepdim=True)) / noise.std(2, keepdim=True)
    encoded: Tensor = encoder(noise, torch.full((len(kinds),), _FRAMES))[0]
    return encoded.transpose(1, 2).flatten(0, 1)


def _enliven_ctc(networks: Networks, heard: Tensor) -> None:
    layer = networks.ctc_decoder.decoder_layers
    weight, bias = layer.weight[:, :, 0], layer.bias
    assert bias is not None
    weight.normal_()
    _standardise(weight, bias, heard, _spreads(len(weight)))
    logits = nn.functional.linear(heard, weight, bias)
    best = logits[:, :-1].reshape(len(heard), len(networks.joint_post_nets), -1).amax(2)  # of each language
    bias[-1] += (best - logits[:, -1:]).quantile(_CTC_BLANKS)


def _enliven_transducer(networks: Networks, heard: Tensor) -> None:
    count, width = TOKENS // len(networks.joint_post_nets), networks.joint_enc.out_features
    calls = nn.functional.normalize(torch.randn(count, width), dim=1)  # what in a frame calls for each token
    _standardise(networks.joint_enc.weight, networks.joint_enc.bias, heard, torch.full((width,), _JOINED))
    called = (networks.joint_enc(heard) @ calls.T).amax(1).mean()
    _echo(networks.prediction, networks.joint_pred, -called * calls)
    networks.joint_enc.bias.add_(1)  # so that the joint's ReLU cuts little
    joined = networks.joint_pre_net(networks.joint_enc(heard))
    nets = networks.joint_post_nets.values()
    for net, share in zip(nets, torch.linspace(*_RNNT_BLANKS, len(nets)).tolist(), strict=True):
        net.weight[:-1] = calls + torch.randn(count, width) / (4 * width**0.5)
        _standardise(net.weight, net.bias, joined, _spreads(count + 1))
        logits = net(joined)
        net.bias[-1] += (logits[:, :-1].amax(1) - logits[:, -1]).quantile(share)


def _echo(prediction: Prediction, joint: nn.Linear, answers: Tensor) -> None:
    """Make the two networks add about `answers` [tokens, width], all of one length, to what they give after each token.

    The first LSTM layer sums up the last ones, small enough for its tanh to be a line; the second passes on.
    """
    width = answers.shape[1]
    length = answers.norm(dim=1).mean()
    prediction.embed.weight[: len(answers)] = _SMALL / length * answers
    lstm = dict(prediction.lstm.named_parameters())
    for layer, forget in enumerate((_KEPT, -_OPEN)):
        for name in ("weight_ih", "weight_hh"):
            lstm[f"{name}_l{layer}"].mul_(_SMALL)
        lstm[f"weight_ih_l{layer}"][2 * width : 3 * width] += torch.eye(width)
        lstm[f"bias_ih_l{layer}"][:] = torch.tensor([_OPEN, forget, 0.0, _OPEN]).repeat_interleave(width)
        lstm[f"bias_hh_l{layer}"].zero_()
    state = torch.zeros(2, len(answers), width)
    given, *_ = prediction(torch.arange(len(answers))[:, None], torch.tensor(1), state, state)
    joint.bias.zero_()
    joint.weight.copy_(torch.eye(width) * length / given[:, :, 0].norm(dim=1).mean())


def _spreads(count: int) -> Tensor:
    """The deviation of each token's logit, the blank's last."""
    spreads = _SPREAD * torch.exp(_OUTSPOKEN * torch.randn(count))
    spreads[-1] = _SPREAD / 2
    return spreads


def _standardise(weight: Tensor, bias: Tensor, inputs: Tensor, spreads: Tensor) -> None:
    """Scale each output to the mean 0 and the given deviation over the inputs."""
    weight *= (spreads / (inputs @ weight.T).std(0))[:, None]
    bias.copy_(-(weight @ inputs.mean(0)))
