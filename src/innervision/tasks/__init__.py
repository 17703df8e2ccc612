"""What the predictions of a run are scored by: the similarity of features, and the tasks of the experts.

Tasks come from the entry points of the group `innervision.tasks`, so other packages can bring their own: a class with
the methods of `innervision.tasks.task.Task`.
"""
