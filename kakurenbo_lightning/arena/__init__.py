"""Does a method pay? Compares every method with two controls: a random choice of the same share, and a baseline of equal time.

``runs`` lists the trainings of a comparison and keeps their results in a folder, ``verdict`` makes the table from them, and
``compare`` trains the user's module. Before any of that, ``advice`` forecasts what each method would save.
"""
