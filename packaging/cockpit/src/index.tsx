// SPDX-License-Identifier: GPL-2.0-or-later
// Start the page.

import { createRoot } from "react-dom/client";

import "@patternfly/react-core/dist/styles/base.css";

import { followTheme } from "./theme";
import { App } from "./views/App";

import "./style.css"; // behind the styles of components

const place = document.getElementById("app");
if (place) {
    followTheme();
    createRoot(place).render(<App />);
}
