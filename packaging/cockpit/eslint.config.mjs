// SPDX-License-Identifier: GPL-2.0-or-later

import js from "@eslint/js";
import hooks from "eslint-plugin-react-hooks";
import ts from "typescript-eslint";

export default ts.config(
    { ignores: ["node_modules/"] },
    js.configs.recommended,
    {
        files: ["src/**/*.ts", "src/**/*.tsx"],
        extends: [ts.configs.strictTypeChecked],
        languageOptions: { parserOptions: { projectService: true } },
        plugins: { "react-hooks": hooks },
        rules: {
            "react-hooks/rules-of-hooks": "error",
            "react-hooks/exhaustive-deps": "error",
            "@typescript-eslint/use-unknown-in-catch-callback-variable": "off", // Cockpit's failures have a type
            // what others wrote is only ever shown as text
            "no-restricted-syntax": ["error", {
                selector: "JSXAttribute[name.name='dangerouslySetInnerHTML'], MemberExpression[property.name=/^(inner|outer)HTML$/]",
                message: "Show foreign text as text.",
            }],
        },
    },
    {
        files: ["src/test/*.ts"],
        rules: { "@typescript-eslint/no-floating-promises": "off" }, // node's runner awaits its tests itself
    },
    {
        files: ["*.mjs"],
        languageOptions: { globals: { process: "readonly" } },
    },
);
