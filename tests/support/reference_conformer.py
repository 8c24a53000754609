"""IndicConformer decoding, slow and plain, as its published code does it: what the adapter is compared with.

Written from the layout's description, not from our code. One utterance at a time, one frame at a time, and nothing
remembered between steps.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime

BLANK = 256
START = 5632
MAX_SYMBOLS = 10


class Reference:
    """The graphs of a directory in the published layout."""

    def __init__(self, directory):
        self.assets = Path(directory) / "assets"
        self.vocabulary = json.loads((self.assets / "vocab.json").read_text())
        masks = json.loads((self.assets / "language_masks.json").read_text())
        self.masks = {language: np.array(mask) for language, mask in masks.items()}
        self._sessions = {}

    def run(self, graph, **inputs):
        if graph not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self._sessions[graph] = onnxruntime.InferenceSession(str(self.assets / f"{graph}.onnx"), options)
        return self._sessions[graph].run(None, inputs)

    def encode(self, features):
        """Features [80, T] to [1, width, T']."""
        length = np.array([features.shape[1]], dtype=np.int64)
        return self.run("encoder", audio_signal=features[None], length=length)[0]

    def ctc(self, encoded, language):
        """Local token ids."""
        (logprobs,) = self.run("ctc_decoder", encoder_output=encoded)
        scores = logprobs[:, :, self.masks[language]]
        scores = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        tokens, last = [], None
        for token in scores[0].argmax(-1).tolist():
            if token not in (last, BLANK):
                tokens.append(token)
            last = token
        return tokens

    def rnnt(self, encoded, language):
        """Local token ids, and the frame of each."""
        (frames,) = self.run("joint_enc", input=np.ascontiguousarray(encoded.transpose(0, 2, 1)))
        said, emitted = [START], []
        h = c = np.zeros((2, 1, frames.shape[2]), dtype=np.float32)
        for t in range(frames.shape[1]):
            for _ in range(MAX_SYMBOLS):
                state = {"states.1": h, "onnx::Slice_3": c}
                targets, length = np.array([[said[-1]]], dtype=np.int32), np.array([1], dtype=np.int32)
                g, _, h2, c2 = self.run("rnnt_decoder", targets=targets, target_length=length, **state)
                (p,) = self.run("joint_pred", input=np.ascontiguousarray(g.transpose(0, 2, 1)))
                (z,) = self.run("joint_pre_net", input=frames[:, t : t + 1] + p)
                (logits,) = self.run(f"joint_post_net_{language}", input=z)
                token = int(logits.argmax())
                if token == BLANK:
                    break
                said.append(token)
                emitted.append(t)
                h, c = h2, c2
        return said[1:], emitted

    def text(self, tokens, language):
        return "".join(self.vocabulary[language][token] for token in tokens).replace("▁", " ").strip()
