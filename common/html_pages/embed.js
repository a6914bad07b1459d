// Draws the charts in the colours of the page, and again when these change.
const charts = [...document.querySelectorAll(".chart")];
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
function config() {
  const ink = colour("--ink"), soft = colour("--soft"), line = colour("--line");
  return {
    background: null,
    font: "system-ui, sans-serif",
    view: { stroke: line },
    axis: { labelColor: soft, titleColor: ink, gridColor: line, domainColor: line, tickColor: line },
    legend: {
      labelColor: ink, titleColor: ink, orient: "top",
      symbolBaseFillColor: soft, symbolBaseStrokeColor: soft,
    },
    header: { labelColor: ink, titleColor: ink },
    title: { color: ink },
    text: { color: ink },
    rule: { color: ink },
  };
}
function draw() {
  for (const chart of charts) {
    const spec = JSON.parse(document.getElementById(chart.dataset.spec).textContent);
    const options = { actions: false, renderer: "svg", config: config() };
    vegaEmbed(chart, spec, options).catch((error) => {
      chart.textContent = "This chart cannot be drawn: " + error.message;
      console.error(error);
    });
  }
}
draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
