"""The program `kakurenbo-report`: what runs hid, what that saved and whether it was worth it."""
