"""Members as ONNX, torch.export or safetensors files, verified against PyTorch."""
