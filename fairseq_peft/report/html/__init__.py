"""The report as one page of HTML that needs nothing but itself.

``page`` collects and fills ``templates/``; ``words`` says what may be concluded; ``charts`` draws
SVG with Vega-Lite; ``examples`` picks test rows; ``origins`` says how the runs were made.
"""
