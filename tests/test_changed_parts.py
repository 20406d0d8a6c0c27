"""Results are kept by what made them: an extractor or matcher that was changed by hand has other ones."""

import pytest
import torch
from PIL import Image

from isinglass.cache import FeatureCache
from isinglass.extractors.sift import SIFT
from isinglass.extractors.superpoint import SuperPoint
from isinglass.matchers.nearest import Nearest
from isinglass.pipeline import Pipeline
from isinglass.runtime.anatomy import customized
from isinglass.sfm.extraction import feature_settings
from isinglass.sfm.matching import settings_of

pytest.importorskip("cv2")


def sift(**options):
    return Pipeline(extractor="rootsift", matcher="nearest", max_keypoints=150, resize=300, **options)


class FewSIFT(SIFT):
    """Which has the signature of its parent."""

    def extract(self, images, mask=None):
        return super().extract(images, mask).top(20)


def test_an_extractor_that_was_changed_is_not_taken_for_the_same(motorcycle, tmp_path):
    """A method of the instance, a hook, a module and a subclass: none is in its weights, settings or signature."""
    image = tmp_path / "photo.png"
    Image.fromarray((motorcycle[0][:, 100:400, :300] * 255).to(torch.uint8).permute(1, 2, 0).numpy()).save(image)

    def count(pipeline):
        return FeatureCache(pipeline, tmp_path).get(image)[0].keypoints.shape[1]

    plain, changed, few = sift(), sift(), sift(custom_extractor=FewSIFT())
    extract = changed.extractor.extract
    changed.extractor.extract = lambda *given: extract(*given).top(10)
    assert [count(plain), count(changed), count(few), count(plain)] == [150, 10, 20, 150]
    stores = {feature_settings(pipeline) for pipeline in (plain, changed, few)}
    assert len(stores) == 3 and feature_settings(plain) == feature_settings(sift())
    del changed.extractor.extract
    assert feature_settings(changed) == feature_settings(plain) and count(changed) == 150


def test_hooks_and_modules_of_a_network_count_for_what_is_kept():
    network = SuperPoint()
    assert customized(network) is None
    keys, block = [], network.backbone[1][0]
    for _ in range(2):  # the second hook may lie where the first one was
        handle = block.register_forward_hook(lambda module, given, result: result * 2)
        keys.append(customized(network))
        handle.remove()
    block.relu = torch.nn.GELU()
    keys.append(customized(network))
    assert None not in keys and len(set(keys)) == 3
    matcher = Nearest()
    before = settings_of(matcher, "{}")
    matcher.match_many = lambda *given: []
    assert settings_of(matcher, "{}") != before
