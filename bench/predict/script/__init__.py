"""An unchanged script on tensors without data: what it would take, without the device and the weights."""
