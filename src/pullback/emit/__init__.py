"""The end of the house: labelled expressions become ATen operators, and those become a program that runs."""
