"""The small world through transformers, f32, the plain way: prompts in LLaVA-MORE's order, pictures padded and preprocessed by the PIL
CLIP processor, hidden states of every layer, greedy texts. Used by make_models.py (golden files) and parity.py (live comparison)."""
import json
import os
import sys
import tempfile

import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tinyworld"))
import to_llava_hf

SYSTEM = ("You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, and assist the "
          "user with a variety of tasks using natural language.")


def conversation(question, image, answer=None):
    header = lambda role: f"<|start_header_id|>{role}<|end_header_id|>\n\n"
    user = ("<image>\n" if image else "") + question
    text = "<|begin_of_text|>" + header("system") + SYSTEM + "<|eot_id|>" + header("user") + user + "<|eot_id|>" + header("assistant")
    return text + (answer or "")


class World:
    def __init__(self, folder):
        self.folder, self.scratch = folder, tempfile.TemporaryDirectory()
        vlm = os.path.join(folder, "vlm")
        to_llava_hf.main(vlm, self.scratch.name)
        self.config = json.load(open(os.path.join(vlm, "config.json")))
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(vlm)
        self.processor = CLIPImageProcessorPil.from_pretrained(os.path.join(folder, "clip"))
        self.model = LlavaForConditionalGeneration.from_pretrained(self.scratch.name, dtype=torch.float32).eval()
        self.vocab, self.image_id = self.config["vocab_size"], self.model.config.image_token_id
        self.rows = self.model.config.image_seq_length

    def line(self, name, index):
        return [json.loads(x) for x in open(os.path.join(self.folder, "data", name)) if x.strip()][index]

    def ids(self, text):
        """Token ids with -200 once per image row: pieces around <image>, each tokenised on its own."""
        out = []
        for i, piece in enumerate(text.split("<image>")):
            out += [-200] * self.rows * (i > 0) + self.tokenizer(piece, add_special_tokens=False).input_ids
        return out

    def pixels(self, path):
        """(3, S, S) f32: pasted on a square of the mean colour ("pad"), then CLIP's resize, crop, normalise."""
        picture = Image.open(os.path.join(self.folder, "data", path)).convert("RGB")
        side = max(picture.size)
        square = Image.new("RGB", (side, side), tuple(int(255 * m) for m in self.processor.image_mean))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        return self.processor(square, return_tensors="pt").pixel_values[0]

    def inputs(self, ids, pixels):
        row = torch.tensor([[self.image_id if i == -200 else i for i in ids]])
        return dict(input_ids=row, attention_mask=torch.ones_like(row), **({} if pixels is None else {"pixel_values": pixels[None]}))

    @torch.no_grad()
    def forward(self, ids, pixels):
        """L+1 residual streams (T, C), the last before the final norm, and logits (T, V)."""
        kept = {}
        hooks = [m.register_forward_hook(lambda _, a, out, i=i: kept.__setitem__(i, out[0] if isinstance(out, tuple) else out))
                 for i, m in enumerate(self.model.model.language_model.layers)]
        out = self.model(**self.inputs(ids, pixels), output_hidden_states=True)
        for h in hooks:
            h.remove()
        states = [out.hidden_states[0][0]] + [kept[i].reshape(len(ids), -1) for i in range(len(hooks))]
        return torch.stack(states), out.logits[0, :, :self.vocab]

    @torch.no_grad()
    def vision(self, pixels):
        """Tower states 0..L (1+n, C_vision) and projected rows."""
        out = self.model.model.vision_tower(pixels[None], output_hidden_states=True).hidden_states
        rows = self.model.model.multi_modal_projector(out[self.model.config.vision_feature_layer][:, 1:])
        return torch.stack([s[0] for s in out]), rows[0]

    @torch.no_grad()
    def generate(self, ids, pixels, max_new):
        blocked = [[self.image_id]]  # the row that the llava-hf layout adds
        out = self.model.generate(**self.inputs(ids, pixels), max_new_tokens=max_new, do_sample=False, bad_words_ids=blocked)[0]
        new = out[len(ids):].tolist()
        return new, self.tokenizer.decode(new, skip_special_tokens=True)
