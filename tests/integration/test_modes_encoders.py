"""Models with an encoder: of text, sound or images, before their passes or inside one of them."""

from __future__ import annotations

import mode_models
import pytest
import torch
from mode_truth import Forward, checked, decodes, observed, passes_of, prompt

pytestmark = pytest.mark.capture


def sounds(frames):
    torch.manual_seed(4)
    return torch.randn(1, 8, frames)


def image(rows=1):
    torch.manual_seed(4)
    return torch.randn(rows, 3, 16, 16)


@pytest.mark.parametrize("build", [mode_models.t5, mode_models.bart])
def test_text_to_text(build):
    model = build()
    record, seen = checked(model, lambda: model.generate(prompt(), max_new_tokens=4), encoders=[model.get_encoder()])
    assert seen == [Forward("encode", 9, 0, 1), Forward("prefill", 1, 0, 1), *decodes(1, 3)]
    assert (record.input_tokens, record.padding_tokens, record.output_tokens) == (9, 0, 4)
    assert record.phase("encode").tokens == 9
    assert [work.regime for work in record.phase("encode").work] == ["encode"]
    assert {work.encoder_len for work in record.phase("decode").work} == {9}
    assert "watched" not in str(vars(type(model.get_encoder())).get("__call__"))


def test_text_to_text_with_beams_and_padding():
    model = mode_models.t5()
    ids = prompt(rows=2)
    mask = torch.ones_like(ids)
    ids[0, 6:], mask[0, 6:] = 0, 0
    record, seen = checked(
        model,
        lambda: model.generate(ids, attention_mask=mask, max_new_tokens=4, num_beams=3),
        encoders=[model.get_encoder()],
    )
    assert seen == [Forward("encode", 9, 0, 2), Forward("prefill", 1, 0, 6), *decodes(1, 3, batch=6)]
    assert (record.input_tokens, record.padding_tokens, record.output_tokens) == (15, 3, 8)


def test_text_to_text_without_a_cache():
    model = mode_models.t5()
    _, seen = checked(
        model, lambda: model.generate(prompt(), max_new_tokens=3, use_cache=False), encoders=[model.get_encoder()]
    )
    assert [each.name for each in seen] == ["encode", "prefill", "decode/no-cache", "decode/no-cache"]


def test_text_to_text_behind_tokens_of_the_callers_own():
    model = mode_models.t5()
    start = torch.tensor([[0, 5, 6]])
    record, seen = checked(
        model,
        lambda: model.generate(prompt(), decoder_input_ids=start, max_new_tokens=3),
        encoders=[model.get_encoder()],
    )
    assert seen == [Forward("encode", 9, 0, 1), Forward("prefill", 3, 0, 1), *decodes(3, 2)]
    assert record.output_tokens == 3


def test_what_was_encoded_before_is_not_encoded_again():
    model = mode_models.t5()
    with torch.no_grad():
        encoded = model.get_encoder()(prompt())
    record, seen = checked(
        model, lambda: model.generate(encoder_outputs=encoded, max_new_tokens=3), encoders=[model.get_encoder()]
    )
    assert seen == [Forward("prefill", 1, 0, 1), *decodes(1, 2)]
    assert (record.input_tokens, record.output_tokens) == (None, 3)


def test_the_encoder_of_a_traced_model_runs_alone_unseen():
    model = mode_models.t5()
    with observed(model) as taken, torch.no_grad():
        model.get_encoder()(prompt())
    assert taken.records == []


WINDOW = [Forward("encode", 20, 0, 1), Forward("prefill", 2, 0, 1), *decodes(2, 5)]


@pytest.mark.parametrize(
    "options",
    [{}, {"return_dict_in_generate": True}, {"force_unique_generate_call": True}, {"return_segments": True}],
    ids=["tensor", "dict", "one call", "segments"],
)
def test_a_short_recording(options):
    model = mode_models.whisper()
    record, seen = checked(
        model, lambda: model.generate(sounds(40), max_new_tokens=6, **options), encoders=[model.get_encoder()]
    )
    assert seen == WINDOW
    assert (record.input_tokens, record.output_tokens, record.batch_size) == (None, 6, 1)


def test_two_short_recordings_at_once():
    model = mode_models.whisper()
    features = torch.cat([sounds(40), -sounds(40)])
    record, seen = checked(model, lambda: model.generate(features, max_new_tokens=6), encoders=[model.get_encoder()])
    assert seen[:2] == [Forward("encode", 20, 0, 2), Forward("prefill", 2, 0, 2)]
    rows = model.generate(features, max_new_tokens=6)
    assert record.output_tokens == int((rows < 198).sum())


def test_the_language_is_found_out_by_a_forward_with_an_encoder_in_it():
    model = mode_models.whisper(multilingual=True)
    record, seen = checked(model, lambda: model.generate(sounds(40), max_new_tokens=4), encoders=[model.get_encoder()])
    assert seen == [
        Forward("prefill", 1, 0, 1),
        Forward("encode", 20, 0, 1),
        Forward("encode", 20, 0, 1),
        Forward("prefill", 3, 0, 1),
        *decodes(3, 3),
    ]
    assert record.output_tokens == 4


@pytest.mark.parametrize("options", [{}, {"return_segments": True}], ids=["tensor", "segments"])
def test_a_long_recording_is_one_request_of_several_windows(options):
    model = mode_models.whisper()

    def run():
        return model.generate(sounds(100), return_timestamps=True, max_new_tokens=6, **options)

    record, seen = checked(model, run, encoders=[model.get_encoder()])
    windows = [index for index, each in enumerate(seen) if each.name == "encode"]
    assert len(windows) > 1
    assert all(seen[index + 1].name == "prefill" for index in windows)
    assert {each.name for each in seen} == {"encode", "prefill", "decode"}
    result = run()
    rows = result["sequences"] if isinstance(result, dict) else result
    assert record.output_tokens == int((rows < 198).sum())
    assert record.finish_reasons is None


def test_an_image_and_a_text():
    model = mode_models.llava()
    ids = torch.cat([torch.full((1, 5), mode_models.IMAGE_TOKEN), prompt()], dim=1)
    record, seen = checked(
        model,
        lambda: model.generate(
            input_ids=ids, pixel_values=image(), attention_mask=torch.ones_like(ids), max_new_tokens=4
        ),
        encoders=[model.model.vision_tower],
    )
    assert sorted(seen[:2]) == [Forward("encode", 5, 0, 1), Forward("prefill", 14, 0, 1)]
    assert seen[2:] == decodes(14, 3)
    assert (record.input_tokens, record.output_tokens) == (14, 4)


def test_an_image_is_encoded_once_however_many_answers():
    model = mode_models.llava()
    ids = torch.cat([torch.full((1, 5), mode_models.IMAGE_TOKEN), prompt()], dim=1)
    options = {"max_new_tokens": 2, "do_sample": True, "num_return_sequences": 2}
    mask = torch.ones_like(ids)
    _, seen = checked(
        model,
        lambda: model.generate(input_ids=ids, pixel_values=image(), attention_mask=mask, **options),
        encoders=[model.model.vision_tower],
    )
    encode, prefill = sorted(seen[:2])
    assert prefill == Forward("prefill", 14, 0, 2)
    assert encode in {Forward("encode", 5, 0, rows) for rows in (1, 2)}  # older versions copy the image first
    assert seen[2:] == decodes(14, 1, batch=2)


def test_a_model_whose_own_generate_calls_that_of_its_text_decoder():
    model = mode_models.blip()
    with observed(model) as taken:
        result = model.generate(pixel_values=image(), max_new_tokens=4)
    (record,) = taken.records
    seen = passes_of(record)
    assert seen[0] == Forward("encode", 5, 0, 1)
    assert seen[1].name == "prefill"
    assert {each.name for each in seen[2:]} == {"decode"}
    assert record.output_tokens == result.shape[1] - seen[1].q
    assert "watched" not in str(vars(type(model.text_decoder)).get("__call__"))


def test_two_models_put_together():
    model = mode_models.captioner()
    record, seen = checked(
        model, lambda: model.generate(pixel_values=image(), max_new_tokens=4), encoders=[model.get_encoder()]
    )
    assert seen == [Forward("encode", 5, 0, 1), Forward("prefill", 1, 0, 1), *decodes(1, 3)]
    assert (record.input_tokens, record.output_tokens) == (None, 4)


def test_an_encoder_inside_the_first_forward_has_its_own_time_and_it_is_counted_once():
    model = mode_models.listener()
    ids = torch.cat([torch.full((1, 10), mode_models.SOUND_TOKEN), prompt()], dim=1)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "input_features": sounds(40),
        "feature_attention_mask": torch.ones(1, 40, dtype=torch.long),
    }
    record, seen = checked(
        model,
        lambda: model.generate(**inputs, max_new_tokens=3),
        encoders=[model.audio_tower if hasattr(model, "audio_tower") else model.get_encoder("audio")],
    )
    assert seen[0] == Forward("prefill", 19, 0, 1)
    assert seen[1].name == "encode"
    assert seen[2:] == decodes(19, 2)
    first, inner = record.pass_samples[:2]
    prefill, encode = record.phase("prefill"), record.phase("encode")
    assert first.start_ns < inner.start_ns
    assert inner.start_ns + inner.host_ns < first.start_ns + first.host_ns
    assert encode.ledger.issue_ns == inner.host_ns
    assert prefill.ledger.issue_ns <= first.host_ns - inner.host_ns
    assert prefill.pass_ns.sum_ns <= first.host_ns - inner.host_ns
    assert encode.ledger.offcpu_ns is None  # the CPU time was read around the whole pass
