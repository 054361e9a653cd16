
"use strict";
/* Hides the lines of the list that do not hold every word of the search box. */
const box = document.getElementById("search");
if (box) {
  const rows = [...document.querySelectorAll("#listed tbody tr")];
  const texts = rows.map(row => row.textContent.toLowerCase());
  const filter = () => {
    const words = box.value.toLowerCase().split(/\s+/);
    rows.forEach((row, place) => { row.hidden = !words.every(word => texts[place].includes(word)); });
    const shown = rows.filter(row => !row.hidden).length;
    document.getElementById("found").textContent = box.value ? `${shown} of ${rows.length}` : "";
  };
  box.addEventListener("input", filter);
  box.parentElement.classList.add("works");
  filter();
}
