"""Vision and text encoders behind two interfaces."""
