"""What a text is: blank or not, its normal form, and how it is shown."""
