'use strict';
(() => {
  const root = document.documentElement;

  // The theme: the system's, unless somebody chose. A page that is opened from a file may have no storage.
  const themes = ['automatic', 'light', 'dark'];
  const button = document.getElementById('theme');
  const chosen = () => { try { return localStorage.getItem('lockstep-theme'); } catch { return null; } };
  const choose = (theme) => { try { localStorage.setItem('lockstep-theme', theme); } catch { /* not kept */ } };
  const show = (theme) => {
    if (theme === 'automatic') delete root.dataset.theme; else root.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  };
  let theme = themes.includes(chosen()) ? chosen() : 'automatic';
  show(theme);
  button.hidden = false;
  button.addEventListener('click', () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    choose(theme);
    show(theme);
  });

  // A case opens where it explains itself: at its first difference.
  const caseOf = (link) => document.getElementById(decodeURIComponent(link.hash.slice(1)));
  const open = (link) => {
    const details = caseOf(link);
    if (!details) return;
    details.open = true;
    history.replaceState(null, '', link.hash);
    const place = details.querySelector('.problem') || details.querySelector('summary');
    place.focus({ preventScroll: true });
    place.scrollIntoView({ block: 'center' });
  };
  document.addEventListener('click', (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (link) { event.preventDefault(); open(link); }
  });

  // The matrix is one stop of the Tab key; arrow keys move in it, as in any grid.
  const matrix = document.getElementById('matrix');
  const rows = [...matrix.querySelectorAll('[role=row]')].map((row) => [...row.querySelectorAll('a')]);
  const tiles = rows.flat();
  const stop = (tile) => tiles.forEach((other) => { other.tabIndex = other === tile ? 0 : -1; });
  if (tiles.length) stop(tiles.find((tile) => tile.matches('.different, .could-not-run')) || tiles[0]);
  const middle = (tile) => { const box = tile.getBoundingClientRect(); return [(box.left + box.right) / 2, box.top, box.bottom]; };
  // The nearest tile of the next line on the screen: a row of many cases has several.
  const vertical = (from, down) => {
    const [x, top, bottom] = middle(from);
    const beyond = tiles.map((tile) => [tile, ...middle(tile)]).filter((place) => (down ? place[2] >= bottom : place[3] <= top));
    const lines = beyond.map((place) => place[2]);
    const line = down ? Math.min(...lines) : Math.max(...lines);
    const near = beyond.filter((place) => Math.abs(place[2] - line) < 8);
    near.sort((a, b) => Math.abs(a[1] - x) - Math.abs(b[1] - x));
    return near.length ? near[0][0] : from;
  };
  matrix.addEventListener('keydown', (event) => {
    const at = tiles.indexOf(document.activeElement);
    if (at < 0 || event.altKey || event.metaKey) return;
    const row = rows.find((row) => row.includes(tiles[at]));
    const ends = event.ctrlKey ? tiles : row;
    const moves = {
      ArrowLeft: () => tiles[Math.max(at - 1, 0)],
      ArrowRight: () => tiles[Math.min(at + 1, tiles.length - 1)],
      ArrowUp: () => vertical(tiles[at], false),
      ArrowDown: () => vertical(tiles[at], true),
      Home: () => ends[0],
      End: () => ends[ends.length - 1],
      ' ': () => { open(tiles[at]); return null; },
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const tile = moves[event.key]();
    if (tile) { stop(tile); tile.focus(); }
  });
  matrix.addEventListener('focusin', (event) => { if (tiles.includes(event.target)) stop(event.target); });
  document.addEventListener('keydown', (event) => {
    const details = event.key === 'Escape' && document.activeElement.closest('details');
    const tile = details && tiles.find((tile) => caseOf(tile) === details);
    if (tile) { stop(tile); tile.focus(); }
  });

  // A chart reads out the step under the pointer, or the one that arrow keys moved to.
  const data = JSON.parse(document.getElementById('data').textContent);
  const [width, left, right] = data.plot;
  const number = (value) => (value === 0 ? '0' : Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3 ? value.toExponential(3) : String(+value.toPrecision(6)));
  document.querySelectorAll('.chart').forEach((figure) => {
    const chart = data.charts[figure.dataset.group][figure.dataset.chart];
    const [first, last] = chart.steps;
    const svg = figure.querySelector('svg');
    const reading = figure.querySelector('.reading');
    const steps = [...new Set(chart.series.flatMap((series) => series.points.map((point) => point[0])))].sort((a, b) => a - b);
    const mark = document.createElementNS('http://www.w3.org/2000/svg', 'line');
    mark.setAttribute('class', 'mark');
    let at = -1;
    const read = (index) => {
      at = Math.min(Math.max(index, 0), steps.length - 1);
      const step = steps[at];
      const x = left + (step - first) / (last - first) * (right - left);
      Object.entries({ x1: x, x2: x, y1: 8, y2: 218 }).forEach(([name, value]) => mark.setAttribute(name, value));
      svg.append(mark);
      const values = chart.series.map((series) => [series.name, series.points.find((point) => point[0] === step)]).filter((entry) => entry[1]);
      const shown = values.slice(0, 8).map(([name, point]) => `${name} ${number(point[1])}`);
      reading.textContent = `step ${step}: ${shown.join(' · ')}${values.length > 8 ? ` · ${values.length - 8} more` : ''}`;
    };
    svg.addEventListener('pointermove', (event) => {
      const box = svg.getBoundingClientRect();
      const step = first + ((event.clientX - box.left) / box.width * width - left) / (right - left) * (last - first);
      let best = 0;
      steps.forEach((other, index) => { if (Math.abs(other - step) < Math.abs(steps[best] - step)) best = index; });
      read(best);
    });
    figure.addEventListener('keydown', (event) => {
      const move = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1 }[event.key];
      if (move !== undefined) { event.preventDefault(); read(move); }
    });
  });
})();
