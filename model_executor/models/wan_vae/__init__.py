"""The Wan VAE: encoder and decoder, channels last, with the past of each convolution as state."""
