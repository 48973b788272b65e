"""Does a method pay? Every method beside two controls: a random choice of the same share, and a baseline of the same time.

``runs`` says which trainings a comparison is made of and keeps their rows in a folder, ``verdict`` makes the table of them, ``compare``
trains a module of the user's. Before that, ``advice`` says what each method would save.
"""
