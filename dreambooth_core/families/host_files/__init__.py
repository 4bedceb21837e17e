"""A rectified-flow base in the hosts' files: the denoiser, text encoders and autoencoder, each in a
file of its own or several in one."""
