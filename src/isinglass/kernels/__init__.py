"""Operations that the networks share: attention, keypoints, assignment. Tensors in, tensors out."""
